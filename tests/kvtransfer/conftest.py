"""Ends of hand-offs, and the check that nothing of them stays behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from receive_table import Table
from transfer_ends import End, RemoteEnd, resources, start_process_server

SCHEMES = ("loopback", "shm", "ucx", "tcp", "gloo")
torch.set_num_threads(1)


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=("loopback", "shm", "ucx", "tcp"))
def unchecked_scheme(request: pytest.FixtureRequest) -> str:
    """A scheme that can go without checksums."""
    name: str = request.param
    return name


@pytest.fixture(params=("shm", "ucx", "tcp", "gloo"))
def process_scheme(request: pytest.FixtureRequest) -> str:
    """A scheme that reaches other processes."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def nothing_stays_behind() -> Iterator[None]:
    """After each test: no thread, descriptor, mapping or shared memory more than before."""
    before, shared_before = resources(), set(os.listdir("/dev/shm"))
    yield
    if has_more_than(before):
        gc.collect()  # what only a reference cycle holds is not lost
    assert not has_more_than(before)
    assert set(os.listdir("/dev/shm")) == shared_before


def has_more_than(before: list[int]) -> bool:
    """There may be less: a cycle of an earlier test may be collected in this one."""
    return any(now > then for now, then in zip(resources(), before, strict=True))


@pytest.fixture
def make_end(nothing_stays_behind: None) -> Iterator[Callable[..., End]]:
    """Ends that are at baseline, and closed, when the test is over."""
    ends: list[End] = []

    def make(*schemes: str, **options: Any) -> End:
        ends.append(End(*schemes, **options))
        return ends[-1]

    yield make
    open_transfers = [(end.agent.stats().open_sends, end.agent.stats().open_receives) for end in ends]
    for end in ends:
        end.close()
    assert open_transfers == [(0, 0)] * len(ends)


@pytest.fixture
def pair(make_end: Callable[..., End], scheme: str) -> tuple[End, End]:
    """(sender, receiver) of one scheme."""
    return make_end(scheme, owner=1), make_end(scheme, owner=2)


@pytest.fixture(scope="session")
def process_server() -> None:
    start_process_server()


@pytest.fixture
def make_remote(process_server: None, nothing_stays_behind: None) -> Iterator[Callable[..., RemoteEnd]]:
    """Ends in processes of their own."""
    ends: list[RemoteEnd] = []

    def make(*schemes: str, **options: Any) -> RemoteEnd:
        ends.append(RemoteEnd(*schemes, **options))
        return ends[-1]

    yield make
    for end in ends:
        end.close()
