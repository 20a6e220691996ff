"""What befalls a fleet on several hosts: cables cut, processes stopped, a Consul that comes back empty."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from kill_campaign.hosts import WORKERS, Hosts

_LENGTHS_S = (0.3, 12.0)
"""Shorter and longer than a lease, and than the silence after which a connection counts as dead."""


@dataclass
class Outages:
    """`schedule` is what was done, to be shown with a failure. At most one worker of each role is away at a time:
    with all of them away, a fleet can only wait."""

    hosts: Hosts
    rng: random.Random
    schedule: list[str] = field(default_factory=list)
    _began_at_s: float = field(default_factory=time.monotonic)
    _away: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def make(self, outages: int, pause_s: tuple[float, float]) -> None:
        """Each of the three kinds at least once in three; returns when all is well again."""
        kinds: list[Callable[[], Coroutine[Any, Any, None]]] = []
        for _ in range(outages):
            if not kinds:
                kinds = [self._cut, self._stop, self._lose_consul]
                self.rng.shuffle(kinds)
            await asyncio.sleep(self.rng.uniform(*pause_s))
            task = asyncio.create_task(kinds.pop()())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            while len(self._tasks) > 1 or self._away_roles() == {"prefill", "decode"}:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def _cut(self) -> None:
        name, seconds = self._leaves("cut")
        await asyncio.to_thread(self.hosts.cut, name)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.hosts.heal, name)
        self._away.discard(name)

    async def _stop(self) -> None:
        name, seconds = self._leaves("stop")
        os.kill(self.hosts.pids[name], signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(self.hosts.pids[name], signal.SIGCONT)
        self._away.discard(name)

    async def _lose_consul(self) -> None:
        seconds = self.rng.uniform(*_LENGTHS_S)
        self._note(f"no Consul for {seconds:.1f} s, then an empty one")
        await asyncio.to_thread(self.hosts.consul.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.hosts.consul.start)

    def _leaves(self, how: str) -> tuple[str, float]:
        taken = self._away_roles()
        name = self.rng.choice([worker for worker in WORKERS if worker.partition("-")[0] not in taken])
        seconds = self.rng.uniform(*_LENGTHS_S)
        self._away.add(name)
        self._note(f"{how} {name} for {seconds:.1f} s")
        return name, seconds

    def _away_roles(self) -> set[str]:
        return {name.partition("-")[0] for name in self._away}

    def _note(self, what: str) -> None:
        self.schedule.append(f"{time.monotonic() - self._began_at_s:7.2f} s  {what}")
