"""A role's scheduler with a watch: tells a live profile how long each step took, and how much it computed."""

from __future__ import annotations

import time

from baton.engine.engine import Engine
from baton.engine.loop import Scheduler
from baton.worker.live_profile import LiveProfile


class TimedScheduler:
    """Implements `baton.engine.loop.Scheduler`.

    A step that follows another is timed from that one's end: what runs in between holds up the batch as well.
    """

    def __init__(self, scheduler: Scheduler, engine: Engine, profile: LiveProfile) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._profile = profile
        self._busy_until_s: float | None = None

    def step(self) -> bool:
        began_at_s = self._busy_until_s or time.perf_counter()
        is_busy = self._scheduler.step()
        ended_at_s = time.perf_counter()
        if is_busy:
            self._profile.note_step(self._engine.take_landed_work(), ended_at_s - began_at_s)
        self._busy_until_s = ended_at_s if is_busy else None
        return is_busy

    def next_deadline_s(self) -> float | None:
        return self._scheduler.next_deadline_s()

    def close(self) -> None:
        self._scheduler.close()
