"""The engine's thread: runs commands, then steps, and waits where there is neither."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol


class Scheduler(Protocol):
    """What a role does with the engine. All methods run on the engine's thread."""

    def step(self) -> bool:
        """Computes one batch; False where there was nothing to compute."""

    def next_deadline_s(self) -> float | None:
        """When `step` has to be called even if nothing is posted (monotonic clock)."""

    def close(self) -> None:
        """Gives up all work and returns every block."""


class EngineLoop:
    """Serialises everything that touches the engine onto one thread.

    `on_crash` is called from that thread with an exception that no scheduler handled: a bug of ours, after
    which the worker has to end.
    """

    def __init__(self, on_crash: Callable[[BaseException], None]) -> None:
        self._thread: threading.Thread | None = None
        self._scheduler: Scheduler | None = None
        self._on_crash = on_crash
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._turn_began_at_s: float | None = None
        self.busy_s = 0.0

    def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def post(self, command: Callable[[], None]) -> None:
        """Runs `command` on the engine's thread before its next step. Callable from any thread."""
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def switch(self, make: Callable[[], Scheduler]) -> None:
        """Gives up all work and goes on with another scheduler, which `make` builds on the engine's thread, after
        whatever was posted before. Callable from any thread."""
        self.post(lambda: self._switch(make))

    def _switch(self, make: Callable[[], Scheduler]) -> None:
        assert self._scheduler is not None, "there is nothing to switch from before the start"
        self._scheduler.close()
        self._scheduler = make()

    def turn_s(self) -> float:
        """How long the commands and the step in progress have taken so far, in seconds; 0 while there is nothing
        to do. Callable from any thread."""
        began_at_s = self._turn_began_at_s
        return 0.0 if began_at_s is None else time.monotonic() - began_at_s

    def stop(self) -> None:
        """Lets the step in progress end, gives up all work, and joins the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._scheduler is not None, "the thread is started with a scheduler"
        try:
            busy = False
            while not self._stopping:
                commands = self._next_commands(None if busy else self._scheduler)
                self._turn_began_at_s = time.monotonic()
                for command in commands:
                    command()
                stepped_at_s = time.monotonic()
                busy = self._scheduler.step()
                self.busy_s += time.monotonic() - stepped_at_s if busy else 0.0
                self._turn_began_at_s = None
            self._scheduler.close()
        except BaseException as error:
            self._on_crash(error)
            raise

    def _next_commands(self, idle: Scheduler | None) -> deque[Callable[[], None]]:
        """Takes what was posted; with an idle scheduler, waits for something or for its next deadline."""
        with self._wake:
            if idle is not None and not self._commands and not self._stopping:
                deadline_s = idle.next_deadline_s()
                self._wake.wait(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
            commands, self._commands = self._commands, deque()
            return commands
