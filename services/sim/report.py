"""A run in figures: what its users saw, what it cost, and how well it was foreseen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from baton.sim.fleet_file import Objectives, Pool
from baton.sim.ride import Outcome, Ride
from baton.sim.sim_worker import SimWorker
from baton.sim.simulation import Run

PERCENTS = (50.0, 90.0, 95.0, 99.0)


class Latency(msgspec.Struct, frozen=True):
    """Seconds."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float | None = None


class PoolReport(msgspec.Struct, frozen=True):
    """role, workers: at the beginning. mean_workers: that were paid for, those included that came later.
    utilisation: busy seconds over all that were paid. hottest: the busiest worker's over the mean."""

    name: str
    role: str
    workers: int
    mean_workers: float
    utilisation: float
    hottest: float
    cost: float


class Report(msgspec.Struct, frozen=True):
    """attainment: share of all requests, refused ones included, that met both objectives. goodput_rps: these, a
    second. cache_hit_rate: share of prompt tokens that were not computed; unlimited_hit_rate: with one cache
    without bounds. Costs in the fleet's currency. ttft_error_s: realised less predicted, its median and the
    p90 of its size."""

    workload: str
    policy: str
    seed: int
    requests: int
    outcomes: dict[str, int]
    duration_s: float
    ttft_s: Latency
    tpot_s: Latency
    itl_s: Latency
    e2e_s: Latency
    attainment: float
    request_rps: float
    goodput_rps: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    cache_hit_rate: float
    unlimited_hit_rate: float
    local_prefills: int
    preemptions: int
    flips: int
    workers_started: int
    workers_stopped: int
    handoff_bytes: float
    pools: list[PoolReport]
    cost: float
    cost_per_hour: float
    cost_per_million_output_tokens: float
    cost_per_million_tokens: float
    ttft_error_median_s: float
    ttft_error_size_p90_s: float

    def json(self) -> str:
        """The same bytes for the same run."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n"


def report_of(run: Run) -> Report:
    finished = [ride for ride in run.rides if ride.outcome is Outcome.FINISHED]
    duration_s = run.duration_s or 1.0
    good = sum(meets_objectives(run.spec.objectives, ride) for ride in finished)
    prompt_tokens = sum(ride.request.prompt_tokens for ride in finished)
    output_tokens = sum(ride.output_tokens for ride in finished)
    cached_tokens = sum(ride.cached_tokens for ride in finished)
    pools = _pools(run, duration_s)
    cost = sum(pool.cost for pool in pools)
    errors_s = np.array([_ttft_error_s(ride) for ride in finished] or [0.0])
    return Report(
        workload=run.workload.name,
        policy=run.policy,
        seed=run.seed,
        requests=len(run.rides),
        outcomes=dict(sorted(Counter(ride.outcome.value for ride in run.rides if ride.outcome).items())),
        duration_s=run.duration_s,
        ttft_s=_latency([ride.ttft_s for ride in finished]),
        tpot_s=_latency([ride.tpot_s for ride in finished]),
        itl_s=Latency(*run.gaps.percentiles(PERCENTS)),
        e2e_s=_latency([ride.last_token_at_s - ride.arrived_at_s for ride in finished]),
        attainment=good / max(1, len(run.rides)),
        request_rps=len(finished) / duration_s,
        goodput_rps=good / duration_s,
        prompt_tokens_per_s=prompt_tokens / duration_s,
        output_tokens_per_s=output_tokens / duration_s,
        cache_hit_rate=cached_tokens / max(1, prompt_tokens),
        unlimited_hit_rate=run.workload.unlimited_hit_rate(),
        local_prefills=sum(ride.prefill is None for ride in finished),
        preemptions=sum(worker.preemptions for worker in run.decode),
        flips=len(run.flips),
        workers_started=len(run.stays) - sum(pool.workers for pool in run.spec.pools),
        workers_stopped=sum(stay.until_s is not None for stay in run.stays.values()),
        handoff_bytes=run.handoff_bytes,
        pools=pools,
        cost=cost,
        cost_per_hour=3600 * cost / duration_s,
        cost_per_million_output_tokens=1e6 * cost / max(1, output_tokens),
        cost_per_million_tokens=1e6 * cost / max(1, prompt_tokens + output_tokens),
        ttft_error_median_s=float(np.median(errors_s)),
        ttft_error_size_p90_s=float(np.percentile(np.abs(errors_s), 90)),
    )


def meets_objectives(objectives: Objectives, ride: Ride) -> bool:
    """A request of one token has no TPOT to miss."""
    return (
        ride.ttft_s is not None and ride.ttft_s <= objectives.ttft and (ride.tpot_s or 0.0) <= objectives.tpot
    )


def _ttft_error_s(ride: Ride) -> float:
    assert ride.placement is not None
    assert ride.ttft_s is not None
    return ride.ttft_s - ride.placement.prediction.ttft_s


def _latency(values_s: Sequence[float | None]) -> Latency:
    known_s = [value_s for value_s in values_s if value_s is not None]
    if not known_s:
        return Latency(0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p95, p99 = (float(value) for value in np.percentile(known_s, PERCENTS))
    return Latency(p50, p90, p95, p99, float(np.mean(known_s)))


def _pools(run: Run, duration_s: float) -> list[PoolReport]:
    busy_by_id: dict[str, float] = defaultdict(float)
    workers: list[SimWorker] = [*run.prefill, *run.decode]
    for worker in workers:
        busy_by_id[worker.worker_id] += worker.busy_s
    return [_pool(run, pool, busy_by_id, duration_s) for pool in run.spec.pools]


def _pool(run: Run, pool: Pool, busy_by_id: Mapping[str, float], duration_s: float) -> PoolReport:
    """busy_by_id: seconds that each worker computed."""
    paid = {w: stay.paid_s(duration_s) for w, stay in run.stays.items() if stay.pool is pool}
    paid_s = sum(paid.values())
    utilisation = sum(busy_by_id[worker_id] for worker_id in paid) / paid_s
    shares = [busy_by_id[worker_id] / own_s for worker_id, own_s in paid.items() if own_s]
    return PoolReport(
        name=pool.name,
        role=pool.role.value,
        workers=pool.workers,
        mean_workers=paid_s / duration_s,
        utilisation=utilisation,
        hottest=max(shares) / utilisation if utilisation else 1.0,
        cost=paid_s * pool.cost_per_hour / 3600,
    )
