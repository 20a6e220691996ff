"""One timer for many deadlines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from baton.kvtransfer.io_thread import IOThread

Ring = Callable[[float], float | None]
"""Ends what is overdue at the monotonic time given; returns the earliest deadline left, if any."""


class Alarm:
    """Rings on the I/O thread at the earliest deadline set. Setting a later one costs no wake-up, so the usual
    case, deadlines that are met and move on, is one comparison."""

    def __init__(self, io: IOThread, ring: Ring) -> None:
        self._io = io
        self._ring = ring
        self._lock = threading.Lock()
        self._at_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at_s: float) -> None:
        """From any thread: ring at `at_s` (monotonic clock) at the latest."""
        with self._lock:
            if self._at_s is not None and self._at_s <= at_s:
                return
            self._at_s = at_s
        self._io.post(self._arm)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        with self._lock:
            if self._at_s is not None:
                self._timer = self._io.loop.call_at(self._at_s, self._fire)

    def _fire(self) -> None:
        with self._lock:
            self._at_s = self._timer = None
        next_s = self._ring(time.monotonic())
        if next_s is not None:
            self.set(next_s)
