"""Steps that the contract's tests share."""

from __future__ import annotations

import time
from collections.abc import Callable

from transfer_ends import WAIT_S, End, Expected, Opened, stamp

Pair = tuple[End, End]
MakeEnd = Callable[..., End]


def hand_over(
    pair: Pair, positions: list[int], source: list[int], target: list[int]
) -> tuple[Expected, Opened]:
    sender, receiver = pair
    expected = receiver.expect(positions, target)
    opened = sender.open(expected.ticket)
    opened.session.push(positions, source)
    return expected, opened


def assert_untouched(end: End, *except_blocks: int) -> None:
    for block_id in set(range(end.memory.num_blocks)) - set(except_blocks):
        assert end.read(block_id) == stamp(end.owner, block_id, end.memory.block_bytes)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "the condition never came true"
        time.sleep(0.001)
