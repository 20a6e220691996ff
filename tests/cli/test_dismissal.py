"""A process of `baton up` that is told to end: it ends, and its place with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from baton.cli.supervision import RestartLimits
from baton.cli.supervisor import Post, Supervisor


@contextmanager
def supervised(lines: list[str], stop_timeout_s: float) -> Iterator[tuple[Supervisor, Post]]:
    """A supervisor, and the place of a process that does nothing, for it is stopped."""
    supervisor = Supervisor(RestartLimits(), lines.append, stop_timeout_s)
    supervisor.start("frozen", ["version"], {})
    [post] = supervisor.posts
    os.kill(post.child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, post.child.pid, os.WSTOPPED)
    try:
        yield supervisor, post
    finally:
        post.child.kill()


def watch_until_gone(supervisor: Supervisor) -> None:
    read_fd, write_fd = os.pipe()
    try:
        assert not supervisor.watch(read_fd, can_serve=lambda: bool(supervisor.posts))
    finally:
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.timeout(30)
def test_a_dismissed_process_that_never_ends_is_killed_and_does_not_come_back() -> None:
    lines: list[str] = []
    with supervised(lines, stop_timeout_s=0.2) as (supervisor, post):
        supervisor.dismiss(post)
        supervisor.dismiss(post)
        watch_until_gone(supervisor)
    assert lines == [f"frozen (process {post.child.pid}) was killed by SIGKILL"]


@pytest.mark.timeout(30)
def test_a_dismissed_process_that_ends_in_time_is_not_killed() -> None:
    lines: list[str] = []
    with supervised(lines, stop_timeout_s=20.0) as (supervisor, post):
        supervisor.dismiss(post)
        os.kill(post.child.pid, signal.SIGCONT)
        watch_until_gone(supervisor)
    assert lines == [f"frozen (process {post.child.pid}) was killed by SIGTERM"]
