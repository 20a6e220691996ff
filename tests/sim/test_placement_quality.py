"""What placement is worth on simulated fleets: small forms of what `benchmarks/placement.py` measures."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from baton.fleet import Role
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import FleetSpec, Objectives, Pool, read_profile
from baton.sim.generators import generate
from baton.sim.report import Report, report_of
from baton.sim.simulation import Simulation

H100 = read_profile("h100-80g-llama-8b", Path())
H200 = read_profile("h200-141g-llama-8b", Path())
LOCAL_TOKENS = 64


def fleet(**fields: object) -> FleetSpec:
    """Two H100 that prefill, two H200 that decode."""
    spec = FleetSpec(
        pools=(Pool("prefill", Role.PREFILL, 2, H100, 1.0), Pool("decode", Role.DECODE, 2, H200, 1.0)),
        objectives=Objectives(2.0, 0.05),
        chunk_tokens=8192,
        max_running=256,
        max_requests=10_000,
        queue_timeout_s=60.0,
        local_prefill_tokens=LOCAL_TOKENS,
        kv_events=True,
    )
    changed: FleetSpec = msgspec.structs.replace(spec, **fields)
    return changed


def deciding(mode: Disaggregation, **fields: object) -> FleetSpec:
    local_tokens = LOCAL_TOKENS if mode is Disaggregation.AUTO else 0
    return fleet(disaggregation=mode, local_prefill_tokens=local_tokens, **fields)


def simulated(spec: FleetSpec, workload: str, requests: int, rate_rps: float, speed: float = 1.0) -> Report:
    return report_of(Simulation(spec, generate(workload, requests, rate_rps, 0).at_rate(speed)).run())


@cache
def attained(mode: Disaggregation, workload: str, requests: int, rate_rps: float) -> float:
    return simulated(deciding(mode), workload, requests, rate_rps).attainment


@pytest.mark.parametrize(
    ("workload", "requests", "rate_rps"),
    [("prompt-heavy", 200, 10.0), ("shared-prefix", 900, 50.0), ("output-heavy", 600, 40.0)],
)
def test_deciding_for_each_request_is_no_worse_than_always_or_never_handing_off(
    workload: str, requests: int, rate_rps: float
) -> None:
    auto, always, never = (
        attained(mode, workload, requests, rate_rps)
        for mode in (Disaggregation.AUTO, Disaggregation.ALWAYS, Disaggregation.NEVER)
    )
    assert auto >= 0.98 * max(always, never), (auto, always, never)


def test_prompts_are_computed_beside_decoding_where_prefill_workers_alone_are_too_few() -> None:
    auto, always = (
        attained(mode, "prompt-heavy", 200, 10.0) for mode in (Disaggregation.AUTO, Disaggregation.ALWAYS)
    )
    assert auto >= 1.1 * always, (auto, always)


def test_of_chats_beyond_the_places_of_decode_as_many_are_served_in_time_as_by_always_handing_off() -> None:
    pools = (Pool("prefill", Role.PREFILL, 4, H100, 1.0), Pool("decode", Role.DECODE, 4, H200, 1.0))
    auto, always = (
        simulated(deciding(mode, pools=pools), "chat", 3000, 40.0, speed=20.0).attainment
        for mode in (Disaggregation.AUTO, Disaggregation.ALWAYS)
    )
    assert auto >= 0.98 * always, (auto, always)


@pytest.mark.parametrize(("workload", "requests", "speed"), [("agent", 500, 4.0), ("chat", 900, 60.0)])
def test_of_sessions_beyond_what_decode_sustains_more_are_served_in_time_than_by_other_policies(
    workload: str, requests: int, speed: float
) -> None:
    sent = generate(workload, requests, 15.0, 0).at_rate(speed)
    own, *others = (
        report_of(Simulation(fleet(), sent, policy).run()).attainment
        for policy in ("predicted", "session", "prefix", "power_of_two")
    )
    assert own >= 1.05 * max(others), (own, others)


def test_four_routers_that_hear_of_caches_by_events_lose_no_hit_in_a_hundred() -> None:
    rates = [
        simulated(fleet(routers=routers, heartbeat_s=0.25), "agent", 300, 10.0, speed=2.0).cache_hit_rate
        for routers in (1, 4)
    ]
    assert rates[0] > 0.5
    assert rates[1] >= rates[0] - 0.01


SCRIPT = """
from test_placement_quality import fleet, simulated
spec = fleet(routers=3, heartbeat_s=0.1, max_running=16)
print(simulated(spec, "chat", 200, 60.0, speed=20.0).json())
"""


def test_a_run_gives_the_same_bytes_in_every_process() -> None:
    runs = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    (only,) = runs
    assert b'"requests": 200' in only
