"""What the planner remembers of the number of workers: how many were needed, and what was ordered, by it or by a
predecessor."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

HOUR_S = 3600.0
START_TIMEOUT_S = 600.0
"""A worker that was ordered and has not come by then is ordered again: loading weights takes minutes, not hours."""
_STOP_TIMEOUT_S = 120.0
"""A worker that is still at work so long after it was to stop did not take the order."""

_PAUSE_S = 30.0
"""After an order that was refused."""
_SETTLED_S = 30.0
"""A number of workers that stays for so long is meant; who only has died is back by then."""


class ScaleHistory:
    """Of one router. A new leader does not know its predecessor's orders, and need not: to start is to order a
    total, to stop names a worker, so what is ordered twice happens once. What it has seen come of them counts
    against its budget as its own orders do."""

    def __init__(self) -> None:
        self._needed: deque[tuple[float, int]] = deque()
        self._orders_s: list[float] = []
        self._own_order_s = -math.inf
        self._size, self._size_since_s = 0, -math.inf
        self._settled, self._settled_at_s = 0, -math.inf
        self._workers = 0
        self._ordered_at_s = -START_TIMEOUT_S
        self._came_at_s = -math.inf
        self._refused_at_s = -math.inf
        self._leaving: dict[str, float] = {}

    def note_needed(self, at_s: float, workers: int, remember_s: float) -> None:
        """remember_s: how far `most_needed` will look back; a longer pause between two looks leaves nothing
        known."""
        if self._needed and at_s - self._needed[-1][0] > remember_s:
            self._needed.clear()
        self._needed.append((at_s, workers))
        while len(self._needed) > 1 and self._needed[1][0] <= at_s - remember_s:
            self._needed.popleft()

    def start_ordered(self, workers: int, at_s: float) -> None:
        self._workers, self._ordered_at_s = workers, at_s
        self._note_own_order(at_s)

    def stop_ordered(self, worker_id: str, at_s: float) -> None:
        self._leaving[worker_id] = at_s
        self._workers = 0
        self._note_own_order(at_s)

    def refused(self, at_s: float) -> None:
        """Nobody took the last order: it costs nothing of the budget, and the next one waits a while."""
        self._workers = 0
        self._leaving.clear()
        self._orders_s = [order_s for order_s in self._orders_s if order_s != self._own_order_s]
        self._refused_at_s = at_s

    def rests(self, now_s: float) -> bool:
        """Whether an order was refused just now."""
        return now_s < self._refused_at_s + _PAUSE_S

    def observe(self, present: Collection[str], ready: int, at_s: float) -> None:
        """present: ids of all workers. ready: how many of them serve, and are not about to leave."""
        self._leaving = {
            worker_id: since_s
            for worker_id, since_s in self._leaving.items()
            if worker_id in present and at_s < since_s + _STOP_TIMEOUT_S
        }
        if self._workers and ready >= self._workers:
            self._workers, self._came_at_s = 0, at_s
        self._follow_size(len(present), at_s)

    def is_leaving(self, worker_id: str) -> bool:
        return worker_id in self._leaving

    def is_busy(self, now_s: float) -> bool:
        """Whether an order is being carried out."""
        return bool(self._leaving) or self.ordered_workers(now_s) > 0

    def ordered_workers(self, now_s: float) -> int:
        """The total that was ordered, while some of them have not come; else 0."""
        return self._workers if now_s < self._ordered_at_s + START_TIMEOUT_S else 0

    def came_since(self, at_s: float) -> bool:
        """Whether workers that were ordered came since then: what was measured before is of a smaller fleet."""
        return self._came_at_s > at_s

    def most_needed(self, since_s: float) -> int | None:
        """The most workers that were needed at any time since; None where that is not known from then on, or
        where the fleet has been another since."""
        if not self._needed or self._needed[0][0] > since_s or max(self._orders_s, default=since_s) > since_s:
            return None
        return max((workers for at_s, workers in self._needed if at_s >= since_s), default=None)

    def orders_since(self, at_s: float) -> int:
        return sum(order_s > at_s for order_s in self._orders_s)

    def _follow_size(self, size: int, at_s: float) -> None:
        """Who has grown or shrunk for good did so on an order; if not on ours, then on another leader's."""
        if size != self._size:
            self._size, self._size_since_s = size, at_s
        elif size != self._settled and at_s >= self._size_since_s + _SETTLED_S:
            if self._settled and self._own_order_s < self._settled_at_s:
                self._note_order(self._size_since_s)
            self._settled, self._settled_at_s = size, at_s

    def _note_own_order(self, at_s: float) -> None:
        self._own_order_s = at_s
        self._note_order(at_s)

    def _note_order(self, at_s: float) -> None:
        self._orders_s = [order_s for order_s in self._orders_s if order_s > at_s - HOUR_S] + [at_s]
