"""The one thread of an agent on which sockets are read, timers fire and long sends go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

ASK_TIMEOUT_S = 10.0


class IOThread:
    """A selector loop of its own; `loop` may be used from this thread alone, the methods from any."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def post(self, call: Callable[[], None]) -> None:
        """Runs `call` on the thread soon; after `close` it is dropped, as all it could act on is gone."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call)

    def ask(self, call: Callable[[], T]) -> T:
        """Runs `call` on the thread and returns what it returned, or raises what it raised."""
        answer: Future[T] = Future()

        def run() -> None:
            try:
                answer.set_result(call())
            except Exception as error:  # carried to the caller's thread whole
                answer.set_exception(error)

        self.post(run)
        return answer.result(ASK_TIMEOUT_S)

    def close(self) -> None:
        self.post(self.loop.stop)
        self._thread.join()
        self.loop.close()
