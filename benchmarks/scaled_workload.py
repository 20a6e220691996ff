"""Workloads of `baton sim`, made short enough for a cluster on two cores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from baton.errors import ConfigError
from baton.fleet import WorkerProfile
from baton.sim.generators import generate
from baton.sim.trace import read_trace
from baton.sim.workload import SimRequest, Workload

BLOCK_TOKENS = 16
"""Of the live pools, and of the hashes once they are scaled."""

MAX_PROMPT_TOKENS = 2048


def scaled(whole: Workload, prompt_scale: float, output_scale: float) -> Workload:
    """`whole` with shorter prompts and answers; a hash stands for one block of the live pools."""

    def short(request: SimRequest) -> SimRequest:
        prompt_tokens = min(MAX_PROMPT_TOKENS, max(BLOCK_TOKENS, round(request.prompt_tokens * prompt_scale)))
        return replace(
            request,
            prompt_tokens=prompt_tokens,
            output_tokens=max(2, round(request.output_tokens * output_scale)),
            hashes=request.hashes[: prompt_tokens // BLOCK_TOKENS],
        )

    return Workload(whole.name, BLOCK_TOKENS, [short(request) for request in whole.requests])


def generated(name: str, count: int, seed: int, output_scale: float) -> Workload:
    """`count` requests of one of the simulator's own workloads."""
    whole = generate(name, count, 1.0, seed)
    return scaled(whole, BLOCK_TOKENS / whole.block_tokens, output_scale)


def traced(trace: Path, skip: int, count: int, output_scale: float) -> Workload:
    """`count` requests of a trace, those after the first `skip`. Raises ConfigError where there are none."""
    whole = read_trace(trace)
    part = whole.requests[skip : skip + count]
    if not part:
        raise ConfigError(f"{trace} has no request after the first {skip}", field="skip")
    first_s = part[0].arrival_s
    whole = replace(whole, requests=[replace(r, arrival_s=r.arrival_s - first_s) for r in part])
    return scaled(whole, BLOCK_TOKENS / whole.block_tokens, output_scale)


def at_load(sent: Workload, prefill: WorkerProfile, load: float) -> Workload:
    """Arrivals such that computing what no prefix cache holds takes `load` of the time."""
    uncached = 1 - sent.unlimited_hit_rate()
    work_s = sum(prefill.prefill_s(round(r.prompt_tokens * uncached), 0) for r in sent.requests)
    return sent.at_rate(sent.requests[-1].arrival_s * load / work_s)
