"""Where a request runs. Pure: a snapshot and a request in, a placement or a refusal out; no clock, no I/O.

The decode worker is chosen first, since the KV ends up there: the session's own worker, else the one with the
least predicted time to a next token, counting what it caches already. The prefill worker is the one that is
predicted to finish the prompt first: queued tokens and uncached tokens over its measured rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from baton.router.affinity import owner

DEFAULT_PREFILL_TOKENS_PER_S = 1000.0
DEFAULT_DECODE_STEP_S = 0.02
"""Assumed of a worker that announces no measured profile."""

_BATCH_SLOPE = 1 / 32
"""Growth of a decode step with each further sequence, relative to the step at batch 1."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as far as this request is concerned.

    queued_tokens: prompt tokens ahead of this one. sequences: running or about to. available_blocks: free or
    evictable. cached_tokens: of this prompt, probably. Rates are the worker's own measured ones; 0: unknown.
    """

    worker_id: str
    queued_tokens: int = 0
    sequences: int = 0
    available_blocks: int = 0
    cached_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The workers that may take this request: ready, reachable, with KV layouts that fit each other."""

    prefill: Sequence[Candidate]
    decode: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. blocks: of the whole prompt. local_prefill_tokens: how many uncached tokens a decode
    worker that caches the beginning may compute itself."""

    prompt_tokens: int
    blocks: int
    choices: int = 1
    session_key: str | None = None
    local_prefill_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """prefill is None for a local prefill on the decode worker."""

    prefill: str | None
    decode: str
    predicted_ttft_s: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


def place(snapshot: Snapshot, demand: Demand) -> Placement | Refusal:
    if not snapshot.decode:
        return Refusal("no decode worker is ready")
    decode, why_decode = _choose_decode(snapshot.decode, demand)
    uncached_tokens = demand.prompt_tokens - decode.cached_tokens
    if not snapshot.prefill:
        reasons = (why_decode, "local prefill: no prefill worker is ready")
        return Placement(None, decode.worker_id, _local_ttft_s(decode, demand), reasons)
    if decode.cached_tokens and uncached_tokens <= demand.local_prefill_tokens:
        reasons = (why_decode, f"local prefill: only {uncached_tokens} tokens are not cached there")
        return Placement(None, decode.worker_id, _local_ttft_s(decode, demand), reasons)
    prefill = min(snapshot.prefill, key=lambda c: (_prefill_s(c, demand), c.worker_id))
    ttft_s = _prefill_s(prefill, demand)
    why_prefill = f"prefill: {prefill.queued_tokens} tokens queued, {prefill.cached_tokens} cached"
    return Placement(prefill.worker_id, decode.worker_id, ttft_s, (why_decode, why_prefill))


def _choose_decode(candidates: Sequence[Candidate], demand: Demand) -> tuple[Candidate, str]:
    if demand.session_key is not None:
        worker_id = owner(demand.session_key, {c.worker_id: c.sequences for c in candidates})
        return next(c for c in candidates if c.worker_id == worker_id), "decode: the session's worker"
    best = min(candidates, key=lambda c: (_decode_cost_s(c, demand), c.worker_id))
    return best, f"decode: {best.sequences} sequences, {best.cached_tokens} tokens cached"


def _prefill_s(candidate: Candidate, demand: Demand) -> float:
    """Predicted seconds until the prompt is computed."""
    tokens = candidate.queued_tokens + max(1, demand.prompt_tokens - candidate.cached_tokens)
    return tokens / (candidate.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S)


def _local_ttft_s(candidate: Candidate, demand: Demand) -> float:
    return _prefill_s(candidate, demand) + (candidate.decode_step_s or DEFAULT_DECODE_STEP_S)


def _decode_cost_s(candidate: Candidate, demand: Demand) -> float:
    """Predicted step time with this request in the batch, plus the wait for memory where there is too little,
    less what its cache spares in transfer and prefill."""
    step_s = candidate.decode_step_s or DEFAULT_DECODE_STEP_S
    batch_s = step_s * (1 + (candidate.sequences + demand.choices) * _BATCH_SLOPE)
    lacking_blocks = max(0, demand.blocks - candidate.available_blocks)
    rate = candidate.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S
    return batch_s + lacking_blocks * step_s - candidate.cached_tokens / rate
