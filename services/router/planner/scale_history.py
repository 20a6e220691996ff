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
"""Who is there for so long is there to stay; changes closer together came of one order."""


class ScaleHistory:
    """Of one router. A new leader does not know its predecessor's orders, and need not: to start is to order a
    total, to stop names a worker, so what is ordered twice happens once. What it has seen come of them counts
    against its budget as its own orders do: who came for good, or left, and not on an order of its own. A worker
    that left and is back within `START_TIMEOUT_S` had died; what that cost is given back."""

    def __init__(self) -> None:
        self._needed: deque[tuple[float, int]] = deque()
        self._own_s: list[float] = []
        self._foreign_s: list[float] = []
        self._began_s = math.inf
        self._seen_s: dict[str, float] = {}
        self._new_since_s: dict[str, float] = {}
        self._absences: dict[str, float] = {}
        self._stopped: set[str] = set()
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
        self._stopped.add(worker_id)
        self._workers = 0
        self._note_own_order(at_s)

    def refused(self, at_s: float) -> None:
        """Nobody took the last order: it costs nothing of the budget, and the next one waits a while."""
        self._workers = 0
        self._stopped -= self._leaving.keys()
        self._leaving.clear()
        self._own_s = self._own_s[:-1]
        self._refused_at_s = at_s

    def rests(self, now_s: float) -> bool:
        """Whether an order was refused just now."""
        return now_s < self._refused_at_s + _PAUSE_S

    def observe(self, present: Collection[str], ready: int, at_s: float) -> None:
        """present: ids of all workers. ready: how many of them serve, and are not about to leave."""
        self._began_s = min(self._began_s, at_s)
        self._follow_arrivals(present, at_s)
        self._follow_departures(present, at_s)
        self._leaving = {
            worker_id: since_s
            for worker_id, since_s in self._leaving.items()
            if worker_id in present and at_s < since_s + _STOP_TIMEOUT_S
        }
        if self._workers and ready >= self._workers:
            self._workers, self._came_at_s = 0, at_s

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
        if not self._needed or self._needed[0][0] > since_s or self.orders_since(since_s):
            return None
        return max((workers for at_s, workers in self._needed if at_s >= since_s), default=None)

    def orders_since(self, at_s: float) -> int:
        return sum(own_s > at_s for own_s in self._own_s) + len({s for s in self._foreign_s if s > at_s})

    def _follow_arrivals(self, present: Collection[str], at_s: float) -> None:
        is_known = self.ordered_workers(at_s) > 0 or at_s < self._began_s + _SETTLED_S
        self._new_since_s = {w: since_s for w, since_s in self._new_since_s.items() if w in present}
        for worker_id in present:
            if worker_id not in self._seen_s:
                since_s = self._new_since_s.setdefault(worker_id, at_s)
                if not is_known and at_s < since_s + _SETTLED_S:
                    continue
                if not is_known:
                    self._note_foreign_order(since_s)
                del self._new_since_s[worker_id]
            elif worker_id in self._absences:
                self._foreign_s.remove(self._absences.pop(worker_id))
            self._seen_s[worker_id] = at_s

    def _follow_departures(self, present: Collection[str], at_s: float) -> None:
        for worker_id, seen_s in [(w, seen_s) for w, seen_s in self._seen_s.items() if w not in present]:
            if worker_id in self._stopped or at_s >= seen_s + START_TIMEOUT_S:
                del self._seen_s[worker_id]
                self._stopped.discard(worker_id)
                self._absences.pop(worker_id, None)
            elif (
                worker_id not in self._absences
                and at_s >= seen_s + _SETTLED_S
                and not self.ordered_workers(at_s)
            ):
                self._absences[worker_id] = self._note_foreign_order(seen_s)

    def _note_foreign_order(self, at_s: float) -> float:
        """Returns when it is taken to have been given; noted once for each worker, to be given back for each."""
        order_s = next((known_s for known_s in self._foreign_s if abs(known_s - at_s) < _SETTLED_S), at_s)
        self._foreign_s = [known_s for known_s in self._foreign_s if known_s > at_s - HOUR_S] + [order_s]
        return order_s

    def _note_own_order(self, at_s: float) -> None:
        self._own_s = [order_s for order_s in self._own_s if order_s > at_s - HOUR_S] + [at_s]
