"""An engine that hangs is seen from outside, and does not hang for ever."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

from mini_fleet import until

from baton.engine.loop import EngineLoop
from baton.worker.watchdog import Watchdog

HANGING_WORKER = """
import asyncio, threading
from baton.engine.loop import EngineLoop
from baton.worker.watchdog import Watchdog

async def on_stalled(is_stalled):
    print("stalled:", is_stalled, flush=True)

def waits_for_a_lock_that_nobody_releases():
    threading.Event().wait()

class Hanging:
    def step(self): return False
    def next_deadline_s(self): return None
    def close(self): pass

async def main():
    loop = EngineLoop(print)
    loop.start(Hanging())
    watch = asyncio.create_task(Watchdog(loop, 0.8, on_stalled).watch())
    {hang}
    await watch

asyncio.run(main())
"""
ENGINE_HANGS = "loop.post(waits_for_a_lock_that_nobody_releases)"
EVENT_LOOP_HANGS = "await asyncio.sleep(0.1); waits_for_a_lock_that_nobody_releases()"


class Gated:
    """A scheduler whose one step lasts until the test opens the gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.has_begun = threading.Event()

    def step(self) -> bool:
        if not self.has_begun.is_set():
            self.has_begun.set()
            assert self.gate.wait(20)
        return False

    def next_deadline_s(self) -> float | None:
        return None

    def close(self) -> None:
        pass


async def test_a_step_that_takes_long_is_told_and_its_end_as_well() -> None:
    told: list[bool] = []

    async def on_stalled(is_stalled: bool) -> None:
        told.append(is_stalled)

    crashes: list[BaseException] = []
    loop, scheduler = EngineLoop(crashes.append), Gated()
    watch = asyncio.create_task(Watchdog(loop, 60.0, on_stalled, stalled_s=0.1).watch())
    loop.start(scheduler)
    loop.post(scheduler.gate.clear)
    await until(lambda: told == [True])
    scheduler.gate.set()
    await until(lambda: told == [True, False])
    assert loop.turn_s() == 0, "who has nothing to do is not stalled"
    watch.cancel()
    await asyncio.to_thread(loop.stop)
    assert not crashes


def end_of(hang: str) -> subprocess.CompletedProcess[str]:
    script = HANGING_WORKER.format(hang=hang)
    return subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_process_whose_engine_never_comes_back_ends_and_shows_where_it_hung() -> None:
    end = end_of(ENGINE_HANGS)
    assert end.returncode == 1
    assert "stalled: True" in end.stdout
    assert "waits_for_a_lock_that_nobody_releases" in end.stderr


def test_a_process_whose_event_loop_hangs_ends_too() -> None:
    end = end_of(EVENT_LOOP_HANGS)
    assert end.returncode == 1
    assert "waits_for_a_lock_that_nobody_releases" in end.stderr
