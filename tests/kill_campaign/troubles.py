"""What befalls the cluster: processes killed or stopped, at chosen stations of some request's life."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import Cluster
from process_tree import descendants

STATIONS = ("place", "schedule", "first_tokens", "hand_off", "decode_locally", "resume")
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1", "decode-2")
ROUTERS = ("router-0", "router-1")

_LOG_POLL_S = 0.001
_STATION_WAIT_S = 2.0
_STOPPED_S = (0.2, 6.0)
"""Shorter and longer than a lease."""

_STOP_SHARE, _FIRST_STOP = 0.2, 1
"""Of all troubles; the second is one, unless it befalls a router, so that short campaigns have one too."""

_BARE_FLEET_WAIT_S = 40.0


@dataclass
class Troubles:
    """`schedule` is what was done, to be shown with a failure. on_router_end: told which router
    dies."""

    cluster: Cluster
    rng: random.Random
    event_log: Path
    on_router_end: Callable[[int], None]
    schedule: list[str] = field(default_factory=list)
    kills: int = 0
    _began_at_s: float = field(default_factory=time.monotonic)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def make(self, kills: int, pause_s: tuple[float, float]) -> None:
        """Kills `kills` processes, and stops some between them."""
        while self.kills < kills:
            await self._until_some_are_left()
            await asyncio.sleep(self.rng.uniform(*pause_s))
            station = self.rng.choice(STATIONS)
            event = await self._next_event(station)
            name = self._victim(event)
            is_stop = len(self.schedule) == _FIRST_STOP or self.rng.random() < _STOP_SHARE
            if is_stop and name in WORKERS:
                self._stop_for_a_while(name, station)
            else:
                self._kill(name, station)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _victim(self, event: dict[str, Any]) -> str:
        """A worker of the very request that has reached the station, where the log names it; else anybody."""
        concerned = [name for name in (event.get("prefill"), event.get("decode")) if name in WORKERS]
        if concerned and self.rng.random() < 0.7:
            return str(self.rng.choice(concerned))
        return self.rng.choice(WORKERS + ROUTERS)

    def _kill(self, name: str, station: str) -> None:
        pid = self._pid(name)
        if pid is None:
            return
        self._note(f"kill {name} ({pid}) at {station}")
        if name in ROUTERS:
            self.on_router_end(ROUTERS.index(name))
        os.kill(pid, signal.SIGKILL)
        self.kills += 1

    def _stop_for_a_while(self, name: str, station: str) -> None:
        pid, seconds = self._pid(name), self.rng.uniform(*_STOPPED_S)
        if pid is None:
            return
        self._note(f"stop {name} ({pid}) at {station} for {seconds:.1f} s")
        os.kill(pid, signal.SIGSTOP)
        task = asyncio.create_task(self._continue(pid, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _continue(self, pid: int, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if any(process.pid == pid for process in descendants(self.cluster.process.pid)):
            os.kill(pid, signal.SIGCONT)

    async def _until_some_are_left(self) -> None:
        """Kills come faster than starts; one process of each kind is to be there."""
        async with asyncio.timeout(_BARE_FLEET_WAIT_S):
            while True:
                kinds = {name.partition("-")[0] for name in WORKERS + ROUTERS if self._pid(name) is not None}
                if kinds == {"router", "prefill", "decode"}:
                    return
                await asyncio.sleep(0.05)

    async def _next_event(self, station: str) -> dict[str, Any]:
        """The next event of that name, with the workers of its request; an empty one where none comes."""
        placed: dict[str, dict[str, Any]] = {}
        try:
            async with asyncio.timeout(_STATION_WAIT_S):
                async for event in self._events():
                    if event.get("transition") == "place":
                        placed[event["request_id"]] = event
                    if event.get("transition") == station and event["request_id"] in placed:
                        return placed[event["request_id"]]
        except TimeoutError:
            pass
        return {}

    async def _events(self) -> AsyncIterator[dict[str, Any]]:
        """What is appended from now on. The log may end in the middle of a line that is just being written, so what
        comes before the first line's end is left out."""
        with self.event_log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 1))
            line, is_whole = b"", False
            while True:
                line += log.readline()
                if not line.endswith(b"\n"):
                    await asyncio.sleep(_LOG_POLL_S)
                    continue
                if is_whole:
                    yield json.loads(line)
                line, is_whole = b"", True

    def _pid(self, name: str) -> int | None:
        """Of the process that has this place now; None while it has none."""
        if name in ROUTERS:
            flag = f"--port={self.cluster.urls[ROUTERS.index(name)].rpartition(':')[2]}"
        else:
            flag = f"--worker-id={name}"
        for process in descendants(self.cluster.process.pid):
            if flag in process.command.split():
                return process.pid
        return None

    def _note(self, what: str) -> None:
        self.schedule.append(f"{time.monotonic() - self._began_at_s:7.2f} s  {what}")
