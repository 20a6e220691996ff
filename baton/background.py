"""Background tasks that have to run for as long as their process does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

OnCrash = Callable[[BaseException], None]
"""Told of a bug of ours after which the process has to end: half of it is dead."""


def run_forever(work: Coroutine[Any, Any, None], name: str, on_crash: OnCrash) -> asyncio.Task[None]:
    """Starts `work` as a task that nothing but its cancellation may end; whatever else ends it is a crash."""

    def on_done(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            on_crash(task.exception() or RuntimeError(f"{name} has come to an end"))

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(on_done)
    return task
