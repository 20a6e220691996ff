"""The search for the best split and the highest rate, on a fleet whose bottleneck is known."""

from __future__ import annotations

import pytest

from baton.errors import ConfigError
from baton.fleet import Role
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import FleetSpec, HardwareProfile, Objectives, Pool
from baton.sim.generators import generate
from baton.sim.sweep import ATTAINMENT, splits_of, sweep
from baton.sim.table import render_splits
from baton.sim.workload import Workload

HARDWARE = HardwareProfile(
    prefill_tokens_per_s=20_000.0,
    decode_step_s=0.01,
    copy_bytes_per_s=1e10,
    kv_bytes_per_token=1e5,
    kv_tokens=200_000,
    decode_s_per_sequence=0.0005,
)


def fleet(prefill: int, decode: int) -> FleetSpec:
    pools = tuple(
        Pool(role.value, role, count, HARDWARE, 1.0)
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        if count
    )
    limits = Objectives(1.0, 0.05), 2048, 64, 1000, 60.0, 0
    return FleetSpec(pools, *limits, disaggregation=Disaggregation.ALWAYS)


@pytest.mark.parametrize(("workload", "wants_prefill"), [("prompt-heavy", True), ("output-heavy", False)])
def test_the_best_split_has_most_workers_where_the_work_is(workload: str, wants_prefill: bool) -> None:
    splits = list(sweep(fleet(2, 2), generate(workload, 50, 4.0, 0), "predicted", 0))
    best = max(splits, key=lambda split: split.goodput_rps)
    assert (best.prefill_workers > best.decode_workers) is wants_prefill
    for split in splits:
        met = [point.offered_rps for point in split.points if point.attainment >= ATTAINMENT]
        assert split.goodput_rps == max(met, default=0.0)
        assert split.points == sorted(split.points, key=lambda point: point.offered_rps)


def test_a_workload_that_overloads_no_split_gives_a_lower_bound() -> None:
    splits = list(sweep(fleet(1, 1), generate("chat", 4, 1.0, 0), "predicted", 0))
    assert [split.is_bounded for split in splits] == [False]
    assert "≥" in str(next(iter(render_splits(splits).columns[2].cells)))


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (1, 5), (4, 4), (32, 32), (1, 63), (63, 1)])
def test_splits_keep_the_workers_and_have_the_fleets_own_among_them(prefill: int, decode: int) -> None:
    counts = [tuple(pool.workers for pool in split.pools) for split in splits_of(fleet(prefill, decode))]
    assert (prefill, decode) in counts
    assert {sum(count) for count in counts} == {prefill + decode}
    assert min(min(count) for count in counts) >= 1
    assert len(set(counts)) == len(counts) <= 8


def test_a_sweep_needs_one_pool_a_role_and_a_duration() -> None:
    workload = generate("chat", 10, 1.0, 0)
    with pytest.raises(ConfigError, match="one prefill and one decode pool"):
        list(sweep(fleet(0, 2), workload, "predicted", 0))
    with pytest.raises(ConfigError, match="all arrive at once"):
        list(sweep(fleet(1, 1), Workload("one", 64, workload.requests[:1]), "predicted", 0))
