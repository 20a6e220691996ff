"""The attempts to serve one part of a request: how many have failed in a row, and whom the next one avoids."""

from __future__ import annotations

from baton.errors import BatonError, HandoffFailed, Overloaded, Unavailable, WorkerFailed
from baton.router.part import Part
from baton.router.retry_budget import RetryBudget

_ELSEWHERE = (HandoffFailed, WorkerFailed, Unavailable)
"""What other workers may do better."""

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0


class Tries:
    """`excluded`: workers that have failed the part since it last gained a token. `last`: what of."""

    def __init__(self, attempts: int, budget: RetryBudget, excluded: frozenset[str] = frozenset()) -> None:
        """attempts: that may fail without a token between them. budget: shared with all other requests."""
        self.excluded = excluded
        self.last: BatonError | None = None
        self._attempts = attempts
        self._budget = budget
        self._failures = 0
        self._output_tokens = 0

    @property
    def pause_s(self) -> float:
        """Before the next attempt: none after the first failure, then longer each time."""
        if self._failures < 2:
            return 0.0
        return min(_FIRST_PAUSE_S * 2.0 ** (self._failures - 2), _MAX_PAUSE_S)

    def failed(self, part: Part, suspects: frozenset[str], error: BatonError) -> None:
        """Notes that the attempt has failed, by one of `suspects`; raises `error` where there is to be no other. A
        client that has seen tokens already is not told that a worker is full."""
        if part.output_tokens > self._output_tokens:
            self.excluded, self._failures = frozenset(), 0
        self._output_tokens = part.output_tokens
        self._failures += 1
        is_retryable = isinstance(error, _ELSEWHERE) or (part.has_begun and isinstance(error, Overloaded))
        if not is_retryable or self._failures >= self._attempts or not self._budget.spend():
            raise error
        self.last = error
        self.excluded |= suspects

    def of_each_choice(self) -> Tries:
        """For a part that is one choice of this one."""
        tries = Tries(self._attempts, self._budget, self.excluded)
        tries.last = self.last
        return tries
