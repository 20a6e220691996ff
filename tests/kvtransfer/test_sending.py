"""The sender's end of a link: a receiver hears of a transfer before its blocks, whoever is writing just then."""

from __future__ import annotations

import time

import numpy as np
import pytest
from transfer_ends import LAYOUT, Outcome

from baton.kvtransfer.base import Ticket
from baton.kvtransfer.block_array import BlockArray
from baton.kvtransfer.copying import CopyingPacker
from baton.kvtransfer.errors import PeerLost, TransferAborted, TransferError
from baton.kvtransfer.link import Link
from baton.kvtransfer.messages import Abort, Attach, Message, Push
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.stats import Tally

BLOCK_BYTES = 16


class HandCrankedLink(Link):
    """Sends nothing by itself: what leaves, leaves when the test asks the channel for it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def flush(self) -> None:
        """Somebody else is writing."""

    def release_payload(self) -> None:
        """None is under way."""

    def close(self, error: TransferError) -> None:
        """Nothing is held."""


@pytest.fixture
def link() -> HandCrankedLink:
    return HandCrankedLink()


@pytest.fixture
def blocks() -> BlockArray:
    return BlockArray(np.zeros(8 * BLOCK_BYTES, np.uint8), BLOCK_BYTES)


@pytest.fixture
def channel(link: HandCrankedLink, blocks: BlockArray) -> SendChannel:
    return SendChannel(link, CopyingPacker(blocks, checksum=True), Tally(), on_lost=lambda: None)


def make_session(blocks: BlockArray, generation: int) -> tuple[Outgoing, Outcome]:
    ticket = Ticket(
        transfer_id=bytes([generation]) * 16,
        slot=0,
        generation=generation,
        epoch=bytes(8),
        endpoints=(),
        layout=LAYOUT,
        block_bytes=BLOCK_BYTES,
        positions=np.arange(4, dtype=np.int32).tobytes(),
        expires_at_s=time.time() + 60,
    )
    outcome = Outcome()
    return Outgoing(ticket, blocks, outcome, lambda _: None), outcome


def drain(channel: SendChannel) -> list[tuple[type, int]]:
    """Kind and generation of all that the channel has to send."""
    frames = iter(channel.next_frame, None)
    return [(type(frame.message), frame.message.generation) for frame in frames]


def test_a_transfer_is_attached_before_its_blocks_leave(channel: SendChannel, blocks: BlockArray) -> None:
    early, _ = make_session(blocks, 1)
    late, _ = make_session(blocks, 2)
    early.push([0, 1], [0, 1])
    channel.carry(early)
    channel.carry(late)
    late.push([2], [5])
    sent = drain(channel)
    assert sorted(sent, key=lambda frame: frame[1]) == [(Attach, 1), (Push, 1), (Attach, 2), (Push, 2)]


def test_sessions_send_a_frame_each_in_turn(channel: SendChannel, blocks: BlockArray) -> None:
    for generation in (1, 2):
        session, _ = make_session(blocks, generation)
        channel.carry(session)
        session.push([0], [0])
        session.push([1], [1])
    pushes = [generation for kind, generation in drain(channel) if kind is Push]
    assert pushes in ([1, 2, 1, 2], [2, 1, 2, 1])


def test_a_session_given_up_before_it_was_attached_is_attached_for_its_abort(
    channel: SendChannel, link: HandCrankedLink, blocks: BlockArray
) -> None:
    session, outcome = make_session(blocks, 1)
    session.push([0], [0])
    channel.carry(session)
    session.fence("the prompt was cancelled")
    assert isinstance(outcome.wait().error, TransferAborted)
    assert [type(message) for message in link.sent] == [Attach, Abort]
    assert drain(channel) == []


def test_a_channel_that_is_gone_ends_its_sessions_and_takes_no_more(
    channel: SendChannel, blocks: BlockArray
) -> None:
    carried, carried_outcome = make_session(blocks, 1)
    channel.carry(carried)
    channel.on_closed(PeerLost("gone"))
    late, late_outcome = make_session(blocks, 2)
    channel.carry(late)
    assert isinstance(carried_outcome.wait().error, PeerLost)
    assert isinstance(late_outcome.wait().error, PeerLost)
    assert not channel.is_open
