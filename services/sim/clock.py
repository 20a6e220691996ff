"""Virtual time: what is due happens in order of time and, at one time, in the order in which it was asked for."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self._asked = 0
        self._due: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        assert time_s >= self.now_s, f"{time_s} s has passed already, it is {self.now_s} s"
        heapq.heappush(self._due, (time_s, self._asked, action))
        self._asked += 1

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now_s + delay_s, action)

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            self.now_s, _, action = heapq.heappop(self._due)
            action()
