"""The agents of several ranks as one: all or nothing, whatever fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
from transfer_ends import WAIT_S, End, Outcome

from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import BlockIds, KVLayout, OnDone, TransferState
from baton.kvtransfer.errors import BadTicket, BlockOutOfRange, TransferAborted
from baton.kvtransfer.group import TransferGroup
from baton.kvtransfer.ticket import bundle, unbundle

LAYOUT = KVLayout(model="m", dtype="float32", block_size=4, layers=2, kv_heads=4, head_dim=8, tp_degree=2)


class Ranks:
    """Two ranks' agents and their group."""

    def __init__(self, owner: int, stack: ExitStack) -> None:
        self.ends = [
            End(
                "loopback",
                owner=owner,
                num_blocks=16,
                block_bytes=LAYOUT.block_bytes,
                layout=msgspec.structs.replace(LAYOUT, tp_rank=rank),
            )
            for rank in range(2)
        ]
        for end in self.ends:
            stack.callback(end.close)
        self.group = TransferGroup([end.agent for end in self.ends])


@pytest.fixture
def pair() -> Iterator[tuple[Ranks, Ranks]]:
    with ExitStack() as stack:
        yield Ranks(1, stack), Ranks(2, stack)


def test_a_hand_off_is_done_when_every_rank_has_its_share(pair: tuple[Ranks, Ranks]) -> None:
    sender, receiver = pair
    sent, received = Outcome(), Outcome()
    _, ticket = receiver.group.expect([0, 1], [5, 6], WAIT_S, received)
    session = sender.group.open(ticket, sent)
    session.push([0], [9])
    assert not received.is_called
    session.push([1], [3])
    for outcome in (sent, received):
        result = outcome.wait()
        assert result.state is TransferState.DONE
        assert (result.blocks, result.bytes) == (2, 2 * 2 * LAYOUT.block_bytes)
    for source, target in zip(sender.ends, receiver.ends, strict=True):
        assert [target.read(5), target.read(6)] == [source.read(9), source.read(3)]
    assert receiver.group.stats().bytes_received == 2 * 2 * LAYOUT.block_bytes


class DoneAtOnce:
    """An agent whose promise of no blocks is kept before its caller has heard of the promise."""

    def __init__(self, agent: TransferAgent) -> None:
        self._agent = agent

    def expect(
        self,
        positions: BlockIds,
        block_ids: BlockIds,
        ttl_s: float,
        on_done: OnDone,
        tokens: int | None = None,
    ) -> tuple[bytes, bytes]:
        outcome = Outcome()
        promise = self._agent.expect(positions, block_ids, ttl_s, outcome, tokens)
        on_done(outcome.wait())
        return promise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)


def test_a_hand_off_of_no_blocks_is_done_however_soon_its_end_is_told(pair: tuple[Ranks, Ranks]) -> None:
    _, receiver = pair
    group, received = TransferGroup([DoneAtOnce(end.agent) for end in receiver.ends]), Outcome()
    transfer_id, _ = group.expect([], [], WAIT_S, received)
    assert received.wait().state is TransferState.DONE
    assert transfer_id
    assert group._expected == {}


def test_fencing_leaves_nothing_promised_on_any_rank(pair: tuple[Ranks, Ranks]) -> None:
    sender, receiver = pair
    sent, received = Outcome(), Outcome()
    transfer_id, ticket = receiver.group.expect([0], [5], WAIT_S, received)
    session = sender.group.open(ticket, sent)
    receiver.group.fence(transfer_id, "no longer wanted")
    assert isinstance(received.wait().error, TransferAborted)
    assert sent.wait().state is TransferState.FAILED
    session.fence("ended")
    assert receiver.group.stats().open_receives == sender.group.stats().open_sends == 0
    receiver.group.expect([0], [5], WAIT_S, Outcome())


def test_one_rank_that_fails_is_told_once_and_fencing_ends_the_others(pair: tuple[Ranks, Ranks]) -> None:
    sender, receiver = pair
    sent, received = Outcome(), Outcome()
    transfer_id, ticket = receiver.group.expect([0, 1], [5, 6], WAIT_S, received)
    session = sender.group.open(ticket, sent)
    session.push([0], [9])
    while receiver.group.stats().blocks_received < 2:
        assert not received.is_called
    sender.ends[1].agent.close()
    assert received.wait().state is TransferState.FAILED
    receiver.group.fence(transfer_id, "a rank failed")
    session.fence("a rank failed")
    assert sent.wait().state is TransferState.FAILED
    assert receiver.group.stats().open_receives == 0


def test_a_rank_that_cannot_promise_takes_the_promises_of_the_others_back(
    pair: tuple[Ranks, Ranks],
) -> None:
    _, receiver = pair
    receiver.ends[1].agent.expect([0], [5], WAIT_S, Outcome())
    unheard = Outcome()
    with pytest.raises(BlockOutOfRange, match="block 5 is promised"):
        receiver.group.expect([0], [5], WAIT_S, unheard)
    assert receiver.ends[0].agent.stats().open_receives == 0
    assert not unheard.is_called


def test_a_single_ticket_is_its_own_bundle() -> None:
    assert unbundle(bundle([b"one"])) == [b"one"]
    assert unbundle(bundle([b"one", b"two"])) == [b"one", b"two"]


@pytest.mark.parametrize(
    "tail", [b"", b"\xc1", b"\x90", msgspec.msgpack.encode([b"x"] * 65), b"\x92\x01\x02"]
)
def test_a_malformed_bundle_is_refused(tail: bytes) -> None:
    with pytest.raises(BadTicket, match="bundle"):
        unbundle(b"BKB1" + tail)
