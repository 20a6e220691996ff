"""How often requests may be tried again, all together: a fleet that collapses must not drown in retries."""

from __future__ import annotations


class RetryBudget:
    """Every request that arrives earns `ratio` retries, for itself or any other; at most `limit` are kept, and so
    many are there at the start: as many as can be under way when a worker dies. (As Finagle's retry budgets.)"""

    def __init__(self, ratio: float, limit: int) -> None:
        self._ratio = ratio
        self._limit = limit
        self._left = float(limit)

    def earn(self) -> None:
        self._left = min(self._left + self._ratio, self._limit)

    def spend(self) -> bool:
        """False where there is none left."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
