"""Keeps the processes of `baton up` running: starts them, and starts them again when they die."""

from __future__ import annotations

import enum
import math
import os
import random
import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from baton.cli.processes import Child
from baton.cli.supervision import RestartLimits, delay_after_end, recent_ends

_STOP_TIMEOUT_S = 10.0


class Standing(enum.Enum):
    RUNNING = "running"
    WAITING = "waiting to be started again"
    DISMISSED = "ended well, as it was told to"
    GIVEN_UP = "given up"


@dataclass(slots=True)
class Post:
    """One process's place in the cluster, whichever process holds it now. environment: as `Child` takes it.
    is_leaving: it was told to end, and will not be started again; killed_at_s: when it is ended if it has not by
    then."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    child: Child
    standing: Standing = Standing.RUNNING
    restart_at_s: float = 0.0
    ended_at_s: list[float] = field(default_factory=list)
    is_leaving: bool = False
    killed_at_s: float = math.inf

    @property
    def may_serve(self) -> bool:
        return self.standing in (Standing.RUNNING, Standing.WAITING) and not self.is_leaving

    @property
    def due_s(self) -> float:
        """When something is to be done about it, though its process does not end."""
        due_s = {Standing.RUNNING: self.killed_at_s, Standing.WAITING: self.restart_at_s}
        return due_s.get(self.standing, math.inf)


class Supervisor:
    """`tell` gets one line for each end and each new start. stop_timeout_s: for a process that was told to end.
    listeners: descriptors to wait for besides, and what to call when one is readable."""

    def __init__(
        self, limits: RestartLimits, tell: Callable[[str], None], stop_timeout_s: float = _STOP_TIMEOUT_S
    ) -> None:
        self.listeners: dict[int, Callable[[], None]] = {}
        self.posts: list[Post] = []
        self._limits = limits
        self._tell = tell
        self._stop_timeout_s = stop_timeout_s

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.posts.append(Post(name, arguments, environment, Child(name, arguments, environment)))

    def dismiss(self, post: Post) -> None:
        """Tells its process to end, as SIGTERM does, and the place to go with it; once, for a second SIGTERM would
        end it at once. One that takes too long is killed."""
        if post.is_leaving:
            return
        post.is_leaving = True
        if post.standing is Standing.RUNNING:
            post.child.terminate()
            post.killed_at_s = time.monotonic() + self._stop_timeout_s
        else:
            post.standing = Standing.DISMISSED

    def watch(self, stop_fd: int, can_serve: Callable[[], bool]) -> bool:
        """Runs until `stop_fd` becomes readable (True), or until an end after which `can_serve` is false."""
        while can_serve():
            if self._wait(stop_fd):
                return True
            now_s = time.monotonic()
            for post in self.posts:
                if post.standing is Standing.RUNNING and post.child.exit_code is not None:
                    self._note_end(post, now_s)
                elif post.standing is Standing.RUNNING and post.killed_at_s <= now_s:
                    post.child.kill()
                    post.killed_at_s = math.inf
                elif post.standing is Standing.WAITING and post.restart_at_s <= now_s:
                    self._start_again(post)
            self.posts = [
                post for post in self.posts if post.standing is not Standing.DISMISSED or not post.is_leaving
            ]
        return False

    def stop(self) -> None:
        """Ends all processes, for good those that take too long."""
        running = [post.child for post in self.posts if post.standing is Standing.RUNNING]
        for child in running:
            child.terminate()
        deadline_s = time.monotonic() + self._stop_timeout_s
        for child in running:
            child.wait_or_kill(deadline_s)

    def _wait(self, stop_fd: int) -> bool:
        """Until a process ends, the next start or kill is due, or the signal has come, which it returns."""
        due_s = min((post.due_s for post in self.posts), default=math.inf)
        timeout_s = max(0.0, due_s - time.monotonic()) if due_s < math.inf else None
        with selectors.DefaultSelector() as selector:
            selector.register(stop_fd, selectors.EVENT_READ)
            for post in self.posts:
                if post.standing is Standing.RUNNING:
                    selector.register(post.child.pidfd, selectors.EVENT_READ)
            for fd in self.listeners:
                selector.register(fd, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(timeout_s)}
        for fd in ready & self.listeners.keys():
            self.listeners[fd]()
        return stop_fd in ready

    def _note_end(self, post: Post, now_s: float) -> None:
        end, ended_well = post.child.describe_end(), post.child.exit_code == os.EX_OK
        post.child.close()
        post.ended_at_s = [*post.ended_at_s, now_s][-self._limits.max_restarts - 1 :]
        delay_s = delay_after_end(post.ended_at_s, self._limits, random.random())  # noqa: S311 - only jitter
        if ended_well or post.is_leaving:
            post.standing = Standing.DISMISSED
            self._tell(end)
        elif delay_s is None:
            post.standing = Standing.GIVEN_UP
            ends = recent_ends(post.ended_at_s, self._limits)
            self._tell(f"{end}; it is given up, after {ends} ends within {self._limits.window_s:g} s")
        else:
            post.standing, post.restart_at_s = Standing.WAITING, now_s + delay_s
            self._tell(f"{end}; it starts again in {delay_s:.1f} s")

    def _start_again(self, post: Post) -> None:
        post.child = Child(post.name, post.arguments, post.environment)
        post.standing = Standing.RUNNING
        self._tell(f"{post.name} starts again as process {post.child.pid}")
