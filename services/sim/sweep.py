"""The goodput of each split of a fleet between prefill and decode: the highest rate at which enough requests meet
their objectives (Zhong et al., "DistServe", OSDI 2024), found by simulation at one rate after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from baton.errors import ConfigError
from baton.fleet import Role
from baton.sim.fleet_file import FleetSpec
from baton.sim.report import report_of
from baton.sim.simulation import Simulation
from baton.sim.workload import Workload

ATTAINMENT = 0.9
_MAX_SPLITS = 7
_MAX_DOUBLINGS = 8
_BISECTIONS = 4


class Point(msgspec.Struct, frozen=True):
    """offered_rps: mean rate of arrivals. attainment: share of requests that met both objectives."""

    offered_rps: float
    attainment: float


class Split(msgspec.Struct, frozen=True):
    """points: all rates that were tried, in order of rate. goodput_rps: the highest at which 90 % met both
    objectives; 0 where that is none of them."""

    prefill_workers: int
    decode_workers: int
    goodput_rps: float
    points: list[Point]

    @property
    def is_bounded(self) -> bool:
        """Whether a rate was found that is too high."""
        return any(point.attainment < ATTAINMENT for point in self.points)


def sweep(
    spec: FleetSpec, workload: Workload, policy: str, seed: int, on_run: Callable[[], None] = lambda: None
) -> Iterator[Split]:
    """Each split in turn, the fewest prefill workers first. Raises ConfigError unless the fleet has one pool a
    role, and the workload a duration."""
    if sorted(pool.role.value for pool in spec.pools) != ["decode", "prefill"]:
        raise ConfigError("a sweep needs a fleet of one prefill and one decode pool", field="pool")
    if workload.requests[-1].arrival_s <= 0:
        raise ConfigError("a sweep needs requests that do not all arrive at once", field="trace")

    def attainment_at(split: FleetSpec, factor: float) -> float:
        on_run()
        return report_of(Simulation(split, workload.at_rate(factor), policy, seed).run()).attainment

    base_rps = len(workload.requests) / workload.requests[-1].arrival_s
    for split in splits_of(spec):
        tried = _search(lambda factor, split=split: attainment_at(split, factor))  # type: ignore[misc]
        points = [Point(base_rps * factor, tried[factor]) for factor in sorted(tried)]
        met = [point.offered_rps for point in points if point.attainment >= ATTAINMENT]
        prefill, decode = (
            next(p.workers for p in split.pools if p.role is role) for role in (Role.PREFILL, Role.DECODE)
        )
        yield Split(prefill, decode, max(met, default=0.0), points)


def splits_json(splits: Sequence[Split]) -> str:
    """The same bytes for the same splits."""
    return msgspec.json.format(msgspec.json.encode(splits), indent=2).decode() + "\n"


def splits_of(spec: FleetSpec) -> list[FleetSpec]:
    """The same number of workers in up to seven splits, evenly apart, the fleet's own among them; each pool keeps
    its kind of worker."""
    total = sum(pool.workers for pool in spec.pools)
    own = next(pool.workers for pool in spec.pools if pool.role is Role.PREFILL)
    step = max(1, -(-(total - 1) // _MAX_SPLITS))
    return [_with_prefill(spec, count, total) for count in range(own % step or step, total, step)]


def _with_prefill(spec: FleetSpec, count: int, total: int) -> FleetSpec:
    pools = (
        msgspec.structs.replace(pool, workers=count if pool.role is Role.PREFILL else total - count)
        for pool in spec.pools
    )
    return msgspec.structs.replace(spec, pools=tuple(pools))


def _search(attainment_at: Callable[[float], float]) -> dict[float, float]:
    """Rates, as factors, around the last one at which enough requests are good: doubles or halves from 1 until
    it lies between two, then halves the gap."""
    tried = {1.0: attainment_at(1.0)}
    is_met = tried[1.0] >= ATTAINMENT
    factor = 1.0
    for _ in range(_MAX_DOUBLINGS):
        factor = factor * 2 if is_met else factor / 2
        tried[factor] = attainment_at(factor)
        if (tried[factor] >= ATTAINMENT) != is_met:
            break
    else:
        return tried
    low, high = (factor / 2, factor) if is_met else (factor, factor * 2)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        tried[middle] = attainment_at(middle)
        low, high = (middle, high) if tried[middle] >= ATTAINMENT else (low, middle)
    return tried
