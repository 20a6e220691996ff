"""How much of prompts one step computes: tokens, and how long they take by the worker's own profile.

A step is what everybody behind it waits for: a short prompt for the chunk of a long one, streams for the chunk that
is computed beside them. What tokens take grows with the context that they see, so a bound in tokens alone is too
much at a long prompt's end, or too little at its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from baton.fleet import WorkerProfile

AUTO_PASSES = 4
"""What tokens may add to a step where nothing else is configured, in multiples of what each pass takes whatever it
computes: so of a long prompt's time a fifth goes to passes (`benchmarks/interference.py` shows what it gives)."""

LEAST_TOKENS = 16
"""A step's whatever they take."""


@dataclass(frozen=True, slots=True)
class ChunkLimit:
    """tokens, seconds: at most, of prompts in one step. seconds: what the tokens add to it, by `speeds`; None for
    AUTO_PASSES passes, which is no limit where these are not known to take any time."""

    tokens: int
    seconds: float | None = None
    speeds: Callable[[], WorkerProfile] = WorkerProfile

    def room(self) -> StepRoom:
        """Of a step that computes nothing yet."""
        speeds = self.speeds()
        return StepRoom(self.tokens, self._seconds(speeds), self._least_tokens, speeds)

    def told_with(self, speeds: WorkerProfile) -> WorkerProfile:
        """`speeds` with what a pass of such a worker carries at most, for those who predict what prompts take."""
        seconds = max(self._seconds(speeds), speeds.chunk_s(self._least_tokens, 0))
        told_s = 0.0 if seconds == math.inf else seconds
        return replace(speeds, prefill_chunk_tokens=self.tokens, prefill_chunk_s=told_s)

    @property
    def _least_tokens(self) -> int:
        return min(self.tokens, LEAST_TOKENS)

    def _seconds(self, speeds: WorkerProfile) -> float:
        return AUTO_PASSES * speeds.prefill_pass_s or math.inf if self.seconds is None else self.seconds


@dataclass(slots=True)
class StepRoom:
    """What is left of one step while it is given out. least_tokens: of `tokens`, those that regard no time."""

    tokens: int
    seconds: float
    least_tokens: int
    speeds: WorkerProfile

    def fits(self, tokens: int, context_tokens: int) -> int:
        """How many of `tokens` that follow `context_tokens` there is room for."""
        if self.seconds == math.inf:
            return min(tokens, self.tokens)
        in_time = self.speeds.chunk_tokens(self.seconds, context_tokens)
        return min(tokens, self.tokens, max(in_time, self.least_tokens))

    def take(self, tokens: int, context_tokens: int) -> None:
        self.tokens -= tokens
        self.least_tokens = max(0, self.least_tokens - tokens)
        if self.seconds < math.inf:
            self.seconds = max(0.0, self.seconds - self.speeds.chunk_s(tokens, context_tokens))

    def part(self, divisor: int) -> StepRoom:
        """One in `divisor`, and at least a token of a step that has any."""
        tokens = max(min(1, self.tokens), self.tokens // divisor)
        return StepRoom(tokens, self.seconds / divisor, min(1, tokens), self.speeds)
