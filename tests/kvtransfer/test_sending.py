"""The sender's end of a link: a receiver hears of a transfer before its blocks, whoever is writing just then."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from transfer_ends import LAYOUT, WAIT_S, Outcome

from baton.kvtransfer.base import Ticket
from baton.kvtransfer.block_array import BlockArray, Blocks, Ids
from baton.kvtransfer.carrier import Lease
from baton.kvtransfer.copying import CopyingPacker
from baton.kvtransfer.errors import PeerLost, TransferAborted, TransferError
from baton.kvtransfer.leases import PeerLeases, ReadLeases
from baton.kvtransfer.link import Link
from baton.kvtransfer.mapping import MappingPacker
from baton.kvtransfer.messages import Abort, Attach, Lend, Message, Push
from baton.kvtransfer.rows import Digests
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
    return SendChannel("by hand", link, CopyingPacker(blocks, checksum=True), Tally(), on_lost=lambda: None)


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
        ttl_s=60.0,
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


class EagerLink(HandCrankedLink):
    """Sends at once all that the channel has; then another thread gets its turn."""

    channel: SendChannel

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self._then = then

    def flush(self) -> None:
        for frame in iter(self.channel.next_frame, None):
            self.sent.append(frame.message)
        self._then()


class SlowLeases(ReadLeases):
    """Taking a lease back begins, and ends only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.is_revoking, self.may_revoke = threading.Event(), threading.Event()

    def revoke(self, lease: Lease) -> None:
        self.is_revoking.set()
        assert self.may_revoke.wait(WAIT_S)
        super().revoke(lease)


def test_a_fence_while_the_first_frames_leave_takes_back_their_lease(blocks: BlockArray) -> None:
    leases = ReadLeases()
    session, outcome = make_session(blocks, 1)
    session.push([0], [0])
    stood_after_fence: list[bool] = []

    def fence() -> None:
        lends = [message for message in link.sent if isinstance(message, Lend)]
        if lends and not outcome.is_called:
            session.fence("the prompt was cancelled")
            lend = lends[0]
            stood_after_fence.append(peer.stands(Lease(lend.lease_slot, lend.lease_stamp)))

    link, peer = EagerLink(then=fence), PeerLeases(leases.fd)
    channel = link.channel = SendChannel(
        "by hand", link, MappingPacker(blocks, True, leases), Tally(), lambda: None
    )
    channel.carry(session)
    assert stood_after_fence == [False]
    assert isinstance(outcome.wait().error, TransferAborted)
    peer.close()
    leases.close()


def test_a_fence_waits_for_the_thread_that_is_ending_the_session_already(
    link: HandCrankedLink, blocks: BlockArray
) -> None:
    leases = SlowLeases()
    channel = SendChannel("by hand", link, MappingPacker(blocks, True, leases), Tally(), lambda: None)
    session, outcome = make_session(blocks, 1)
    channel.carry(session)
    fenced = threading.Event()

    def fence() -> None:
        session.fence("the prompt was cancelled")
        fenced.set()

    threads = [
        threading.Thread(target=lambda: channel.on_closed(PeerLost("gone"))),
        threading.Thread(target=fence),
    ]
    threads[0].start()
    assert leases.is_revoking.wait(WAIT_S)
    threads[1].start()
    assert not fenced.wait(0.05)
    leases.may_revoke.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert fenced.is_set()
    assert isinstance(outcome.wait().error, PeerLost)
    leases.close()


def test_a_fence_waits_for_the_frame_that_is_being_packed(link: HandCrankedLink) -> None:
    is_reading, may_read = threading.Event(), threading.Event()

    class SlowBlocks(BlockArray):
        def gather(self, ids: Ids, buffer: Blocks, with_digests: bool) -> Digests:
            is_reading.set()
            assert may_read.wait(WAIT_S)
            assert not fenced.is_set()
            return super().gather(ids, buffer, with_digests)

    blocks = SlowBlocks(np.zeros(8 * BLOCK_BYTES, np.uint8), BLOCK_BYTES)
    channel = SendChannel("by hand", link, CopyingPacker(blocks, True), Tally(), lambda: None)
    session, _ = make_session(blocks, 1)
    channel.carry(session)
    session.push([0], [0])
    fenced = threading.Event()

    def fence() -> None:
        session.fence("the prompt was cancelled")
        fenced.set()

    threads = [threading.Thread(target=drain, args=(channel,)), threading.Thread(target=fence)]
    threads[0].start()
    assert is_reading.wait(WAIT_S)
    threads[1].start()
    assert not fenced.wait(0.05)
    may_read.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert fenced.is_set()


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
