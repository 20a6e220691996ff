"""What placement decides on: the workers as they are for one request, and what the request asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.fleet import WorkerProfile


@dataclass(frozen=True, slots=True)
class Candidate:
    """One worker, as far as this request is concerned.

    queued_tokens: prompt tokens ahead of this one. queued_s: seconds that these are predicted to take, where
    the router knows better than by their number. sequences: running or about to. context_tokens: that these
    hold in KV. available_blocks: free or evictable, in blocks as the router counts. cached_tokens: of this
    prompt, probably. kv_bytes_per_token: of a hand-off to here; 0: unknown.
    """

    worker_id: str
    queued_tokens: int = 0
    queued_s: float = 0.0
    sequences: int = 0
    context_tokens: int = 0
    available_blocks: int = 0
    cached_tokens: int = 0
    kv_bytes_per_token: float = 0.0
    profile: WorkerProfile = field(default_factory=WorkerProfile)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The workers that may take this request: ready, reachable, with KV layouts that fit each other."""

    prefill: Sequence[Candidate]
    decode: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. blocks: of the whole prompt. local_prefill_tokens: how many uncached tokens a decode
    worker that caches the beginning may compute itself. ordinal, seed: the number of this placement at its
    router, and the router's seed; policies that take turns or chance go by these, and by nothing else."""

    prompt_tokens: int
    blocks: int
    choices: int = 1
    session_key: str | None = None
    local_prefill_tokens: int = 0
    ordinal: int = 0
    seed: int = 0

    def may_prefill_on(self, decode: Candidate) -> bool:
        """Whether so little is missing on `decode` that it computes the rest itself, without a hand-off."""
        uncached_tokens = self.prompt_tokens - decode.cached_tokens
        return decode.cached_tokens > 0 and uncached_tokens <= self.local_prefill_tokens
