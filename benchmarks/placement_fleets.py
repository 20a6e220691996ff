"""The simulated fleets and loads on which placement is judged."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import msgspec

from baton.fleet import Role
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import FleetSpec, Objectives, Pool, read_profile
from baton.sim.report import Report, report_of
from baton.sim.simulation import Simulation
from baton.sim.workload import Workload

TTFT_S, TPOT_S = 2.0, 0.05
_SHAPES = {"h100": "h100-80g-llama-8b", "h200": "h200-141g-llama-8b"}


def fleet(prefill_h100: int = 16, decode_h200: int = 8) -> FleetSpec:
    """An 8B model; H100s, which lack memory but no FLOP/s, prefill, and H200s decode."""
    pools = [
        Pool(f"{role.value}-{kind}", role, count, hardware, hardware.cost_per_hour)
        for role, kind, count in ((Role.PREFILL, "h100", prefill_h100), (Role.DECODE, "h200", decode_h200))
        for hardware in (read_profile(_SHAPES[kind], Path()),)
    ]
    return FleetSpec(
        pools=tuple(pools),
        objectives=Objectives(TTFT_S, TPOT_S),
        chunk_tokens=8192,
        max_running=256,
        max_requests=100_000,
        queue_timeout_s=60.0,
        local_prefill_tokens=64,
        kv_events=True,
    )


def with_routers(spec: FleetSpec, routers: int, heartbeat_s: float) -> FleetSpec:
    """That many routers, which hear of the workers' loads so often and of their caches at once."""
    return msgspec.structs.replace(spec, routers=routers, heartbeat_s=heartbeat_s)


def with_mode(spec: FleetSpec, mode: Disaggregation) -> FleetSpec:
    tokens = spec.local_prefill_tokens if mode is Disaggregation.AUTO else 0
    return msgspec.structs.replace(spec, disaggregation=mode, local_prefill_tokens=tokens)


def simulate(spec: FleetSpec, workload: Workload, policy: str = "predicted", seed: int = 0) -> Report:
    return report_of(Simulation(spec, workload, policy, seed).run())


def goodput_rps(report: Report, workload: Workload) -> float:
    """Requests that met both objectives, for each second of arrivals."""
    return report.attainment * len(workload.requests) / workload.requests[-1].arrival_s


def pooled_hit_rate(spec: FleetSpec, workload: Workload) -> float:
    """Share of prompt tokens that one cache would hold that is as large as those of all prefill workers together,
    least recently used blocks leaving first: what placement could at best make of separate caches."""
    tokens = sum(p.workers * p.hardware.kv_tokens for p in spec.pools if p.role is Role.PREFILL)
    capacity_blocks = tokens // workload.block_tokens
    cache: OrderedDict[bytes, None] = OrderedDict()
    hits = total_tokens = 0
    for request in workload.requests:
        total_tokens += request.prompt_tokens
        reusable = request.hashes[: (request.prompt_tokens - 1) // workload.block_tokens]
        hits += next((n for n, name in enumerate(reusable) if name not in cache), len(reusable))
        for name in reversed(request.hashes):
            cache[name] = None
            cache.move_to_end(name)
        while len(cache) > capacity_blocks:
            cache.popitem(last=False)
    return hits * workload.block_tokens / total_tokens
