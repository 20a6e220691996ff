"""What placement decides on: the workers as they are for one request, and what the request asks for."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from baton.router.candidates import Candidate, Candidates


class Disaggregation(enum.StrEnum):
    """Where prompts are computed. AUTO: on whichever side is predicted to be better. ALWAYS: on prefill workers
    while there are any. NEVER: on the decode worker itself."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The workers that may take this request: ready, reachable, with KV layouts that fit each other."""

    prefill: Candidates
    decode: Candidates

    @classmethod
    def of(cls, prefill: Iterable[Candidate], decode: Iterable[Candidate]) -> Snapshot:
        return cls(Candidates.of(prefill), Candidates.of(decode))


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for. blocks: of the whole prompt. waited_s: since it arrived. local_prefill_tokens: how
    many uncached tokens a decode worker that caches the beginning may compute itself, whatever its predictions.
    ttft_s, tpot_s: the request's objectives, where it has any. ordinal, seed: the number of this placement at its
    router, and the router's seed; policies that take turns or chance go by these, and by nothing else."""

    prompt_tokens: int
    blocks: int
    choices: int = 1
    waited_s: float = 0.0
    session_key: str | None = None
    local_prefill_tokens: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    disaggregation: Disaggregation = Disaggregation.AUTO
    ordinal: int = 0
    seed: int = 0

    def is_almost_cached(self, cached_tokens: float) -> bool:
        """Whether so little is missing where this much is cached that a decode worker computes it by the way."""
        return 0 < cached_tokens >= self.prompt_tokens - self.local_prefill_tokens
