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

MOST_REQUESTS = 1000
"""Of a generated workload."""

_DRAWN = 4
"""Times as many are drawn: sessions are drawn one after the other, so the last requests are the last turns of a
few, and there are fewer of them a second."""

DECODE_BATCH = 4
"""Sequences that a decode worker is assumed to have, where its load is estimated."""


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


def generated(name: str, skip: int, count: int, seed: int, output_scale: float) -> Workload:
    """`count` requests of one of the simulator's own workloads, those after the first `skip`. Raises ConfigError
    where so many are not drawn."""
    if skip + count > MOST_REQUESTS:
        raise ConfigError(
            f"{skip + count} requests of {name} are more than {MOST_REQUESTS}", field="requests"
        )
    return _part(generate(name, _DRAWN * MOST_REQUESTS, 1.0, seed), skip, count, output_scale)


def traced(trace: Path, skip: int, count: int, output_scale: float) -> Workload:
    """`count` requests of a trace, those after the first `skip`. Raises ConfigError where there are none."""
    whole = read_trace(trace)
    if len(whole.requests) <= skip:
        raise ConfigError(f"{trace} has no request after the first {skip}", field="skip")
    return _part(whole, skip, count, output_scale)


def _part(whole: Workload, skip: int, count: int, output_scale: float) -> Workload:
    """From time 0 on, in blocks of the live pools."""
    part = whole.requests[skip : skip + count]
    shifted = [replace(request, arrival_s=request.arrival_s - part[0].arrival_s) for request in part]
    return scaled(replace(whole, requests=shifted), BLOCK_TOKENS / whole.block_tokens, output_scale)


def later(sent: Workload, pause_s: float) -> Workload:
    """The same requests, each `pause_s` later."""
    moved = [replace(request, arrival_s=request.arrival_s + pause_s) for request in sent.requests]
    return replace(sent, requests=moved)


def followed_by(earlier: Workload, sent: Workload) -> Workload:
    """Both on one clock, numbered anew."""
    both = [*earlier.requests, *sent.requests]
    return replace(sent, requests=[replace(request, number=number) for number, request in enumerate(both)])


def at_load(sent: Workload, prefill: WorkerProfile, decode: WorkerProfile, load: float) -> Workload:
    """Arrivals such that the busier of the two workers is expected to be busy for `load` of the time: by computing
    what no prefix cache holds, or by steps of a few sequences."""
    uncached = 1 - sent.unlimited_hit_rate()
    prompts_s = sum(prefill.prefill_s(round(r.prompt_tokens * uncached), 0) for r in sent.requests)
    tokens_s = sum(
        r.output_tokens * decode.step_s(DECODE_BATCH, DECODE_BATCH * r.prompt_tokens) / DECODE_BATCH
        for r in sent.requests
    )
    return sent.at_rate(sent.requests[-1].arrival_s * load / max(prompts_s, tokens_s))
