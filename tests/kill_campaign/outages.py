"""What befalls a fleet on several hosts: cables cut, processes stopped or killed, Consul lost or back empty."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from kill_campaign.hosts import CONSUL, ROUTERS, WORKERS, Hosts
from kill_campaign.views import Views

CONVERGENCE_S = 5.0
"""Within this time of its return Consul and every router have to know all workers that are there."""

START_S = 180.0
"""Far more than it takes: a process that starts needs three seconds of a core, which a busy machine may be slow to
give."""

LENGTHS_S = (0.3, 12.0)
"""Shorter and longer than a lease, and than the silence after which a connection counts as dead."""

_FREE_WITHIN_S = 2 * START_S
"""The longest outage is a start, after which its kind is free."""

_POLL_S = 0.05

Outage = Callable[[], Coroutine[Any, Any, None]]


@dataclass
class Outages:
    """`schedule`: what was done, to be shown with a failure. `faults`: where the fleet was too slow to meet again.
    on_router_end: told which router dies. At most two outages at a time, and one of each kind of process: with all
    workers of a role away, a fleet can only wait."""

    hosts: Hosts
    views: Views
    rng: random.Random
    on_router_end: Callable[[int], None]
    lengths_s: tuple[float, float] = LENGTHS_S
    schedule: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _began_at_s: float = field(default_factory=time.monotonic)
    _away: set[str] = field(default_factory=set)

    def of_all_kinds(self, count: int) -> Iterator[Outage]:
        """Each kind as often as any other, give or take one."""
        kinds: list[Outage] = []
        for _ in range(count):
            if not kinds:
                kinds = [
                    self._cut,
                    self._stop,
                    self._kill,
                    self._kill_router,
                    self._cut_consul,
                    self._empty_consul,
                ]
                self.rng.shuffle(kinds)
            yield kinds.pop()

    def of_the_network(self) -> list[Outage]:
        """A worker behind a cut cable, and a Consul that remembers nobody: what no fleet on one host bears."""
        return [self._cut, self._empty_consul]

    async def make(self, outages: Iterable[Outage], pause_s: tuple[float, float]) -> None:
        """Returns when all is well again."""
        running: set[asyncio.Task[None]] = set()
        for outage in outages:
            await asyncio.sleep(self.rng.uniform(*pause_s))
            running.add(asyncio.create_task(outage()))
            if len(running) > 1:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(*done)
        await asyncio.gather(*running)

    def is_whole(self) -> bool:
        """Consul has a lease of every worker, and every router knows it by the process that is there now."""
        return self._know(set(WORKERS))

    async def _cut(self) -> None:
        seconds = self.rng.uniform(*self.lengths_s)
        async with self._one_of(WORKERS, f"cut off for {seconds:.1f} s") as name:
            await self._cut_for(name, seconds)

    async def _stop(self) -> None:
        seconds = self.rng.uniform(*self.lengths_s)
        async with self._one_of(WORKERS, f"stopped for {seconds:.1f} s") as name:
            self.hosts.signal(name, signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.hosts.signal(name, signal.SIGCONT)

    async def _kill(self) -> None:
        async with self._one_of(WORKERS, "killed") as name:
            await asyncio.to_thread(self.hosts.kill, name)
            await self._until(lambda: self._know({name}), START_S, f"{name} to be back")

    async def _kill_router(self) -> None:
        async with self._one_of(ROUTERS, "killed") as name:
            number = ROUTERS.index(name)
            self.on_router_end(number)
            await asyncio.to_thread(self.hosts.kill, name)
            await self._until(lambda: bool(self.views.workers()[number]), START_S, f"{name} to be back")

    async def _cut_consul(self) -> None:
        seconds = self.rng.uniform(*self.lengths_s)
        async with self._one_of((CONSUL,), f"cut off for {seconds:.1f} s"):
            await self._cut_for(CONSUL, seconds)
            await self._meet_again()

    async def _empty_consul(self) -> None:
        seconds = self.rng.uniform(*self.lengths_s)
        async with self._one_of((CONSUL,), f"killed, and back empty after {seconds:.1f} s"):
            await asyncio.to_thread(self.hosts.consul.kill)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(self.hosts.start_consul)
            await self._meet_again()

    async def _cut_for(self, name: str, seconds: float) -> None:
        await asyncio.to_thread(self.hosts.cut, name)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.hosts.heal, name)

    async def _meet_again(self) -> None:
        there = set(WORKERS) - self._away
        await self._until(
            lambda: self._know(there - self._away), CONVERGENCE_S, f"{sorted(there)} to meet again"
        )

    async def _until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        began_at_s = time.monotonic()
        while not await asyncio.to_thread(condition):
            if time.monotonic() > began_at_s + timeout_s:
                self.faults.append(
                    f"waited {timeout_s:g} s for {what}: {self.hosts.passing()}, {self._views()}"
                )
                self._note(self.faults[-1])
                return
            await asyncio.sleep(_POLL_S)
        self._note(f"{what} took {time.monotonic() - began_at_s:.1f} s")

    def _know(self, names: set[str]) -> bool:
        pids = self.hosts.pids
        wanted = {(name, pids[name], "ready") for name in names}
        views = [
            view for router, view in zip(ROUTERS, self._views(), strict=True) if router not in self._away
        ]
        return names <= self.hosts.passing() and all(wanted <= view for view in views)

    def _views(self) -> list[set[tuple[str, int, str]]]:
        """Of every router: id, process and state of each worker."""
        return [{(w["id"], w["pid"], w["state"]) for w in view} for view in self.views.workers()]

    @asynccontextmanager
    async def _one_of(self, names: Sequence[str], what: str) -> AsyncIterator[str]:
        """One whose kind has nobody away, once there is one; it is away until the context is left. Raises
        TimeoutError where there is none in time."""
        async with asyncio.timeout(_FREE_WITHIN_S):
            while not (free := [name for name in names if _kind(name) not in map(_kind, self._away)]):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
        name = self.rng.choice(free)
        self._note(f"{name} {what}")
        self._away.add(name)
        try:
            yield name
        finally:
            self._away.remove(name)

    def _note(self, what: str) -> None:
        self.schedule.append(f"{time.monotonic() - self._began_at_s:7.2f} s  {what}")


def _kind(name: str) -> str:
    return name.partition("-")[0]
