"""Notices an engine that does not come back from a step, and a process that does not come back at all.

For a while the worker only says so, and gets nothing new. At the limit the process ends, with the stacks of all its
threads on stderr: whoever holds them will not let go, and a new process can serve. That is the timer of
`faulthandler`, which needs nothing of the interpreter; it is put off again and again for as long as all is well.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
from collections.abc import Awaitable, Callable

from baton.engine.loop import EngineLoop

OnStalled = Callable[[bool], Awaitable[None]]

_STALLED_SHARE = 0.25
"""Of the limit, after which a step counts as stalled where nothing else is said."""

_POLLS = 5
"""Looks at the engine until then."""

_log = logging.getLogger(__name__)


class Watchdog:
    """limit_s: of a step, after which the process ends. stalled_s: after which a step counts as stalled; None: a
    quarter of the limit. on_stalled: told when a step begins to count so (True), and when it has ended after all
    (False)."""

    def __init__(
        self, loop: EngineLoop, limit_s: float, on_stalled: OnStalled, stalled_s: float | None = None
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._stalled_s = limit_s * _STALLED_SHARE if stalled_s is None else stalled_s
        self._on_stalled = on_stalled
        self._is_stalled = False

    async def watch(self) -> None:
        """Runs until cancelled."""
        try:
            while True:
                turn_s = self._loop.turn_s()
                faulthandler.dump_traceback_later(max(0.001, self._limit_s - turn_s), exit=True)
                if (turn_s >= self._stalled_s) is not self._is_stalled:
                    await self._change(turn_s)
                await asyncio.sleep(self._stalled_s / _POLLS)
        finally:
            faulthandler.cancel_dump_traceback_later()

    async def _change(self, turn_s: float) -> None:
        self._is_stalled = not self._is_stalled
        if self._is_stalled:
            _log.error(
                "the engine is in one step for %.1f s; at %g s the process ends", turn_s, self._limit_s
            )
        else:
            _log.warning("the engine has come back from a step that took long")
        await self._on_stalled(self._is_stalled)
