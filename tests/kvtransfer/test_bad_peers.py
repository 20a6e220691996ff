"""Peers that break the protocol: each is refused by name, harms no other, and leaves the pool as it was."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
from raw_peer import RawPeer
from transfer_ends import SECRET, WAIT_S, End, Expected, stamp

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    ChecksumMismatch,
    MalformedFrame,
    PeerLost,
    SchemeUnavailable,
    TransferError,
    Unauthenticated,
)
from baton.kvtransfer.framing import FrameSigner
from baton.kvtransfer.leases import ReadLeases
from baton.kvtransfer.memory import shareable_memory
from baton.kvtransfer.messages import (
    Attach,
    Challenge,
    Digests,
    Ended,
    Lend,
    Message,
    Push,
    Ready,
    Refused,
    encode,
)

MakeEnd = Callable[..., End]
BLOCK = bytes(4096)


@pytest.fixture
def receiver(make_end: MakeEnd) -> End:
    return make_end("tcp", owner=2)


@pytest.fixture
def expected(receiver: End) -> Iterator[Expected]:
    """A transfer of two blocks, which nothing of a bad peer's reaches and which does not stay open."""
    expected = receiver.expect([0, 1], [5, 6])
    yield expected
    assert isinstance(expected.outcome.wait().error, TransferError)
    assert [receiver.read(block_id) for block_id in (5, 6)] == [stamp(2, i, 4096) for i in (5, 6)]
    assert receiver.agent.stats().open_receives == 0


@pytest.fixture
def peer(receiver: End, expected: Expected) -> Iterator[RawPeer]:
    """Introduced, and attached to the transfer (slot 0, generation 1)."""
    with RawPeer(receiver.agent.endpoints[0]) as peer:
        assert isinstance(peer.introduce(), Ready)
        peer.send(Attach(slot=0, generation=1))
        yield peer


def make_push(position: int = 0, digests: bytes = bytes(8)) -> Push:
    return Push(slot=0, generation=1, positions=np.int32(position).tobytes(), digests=digests)


def make_lend(block_id: int = 0) -> Lend:
    return Lend(
        slot=0,
        generation=1,
        positions=np.int32(0).tobytes(),
        block_ids=np.int32(block_id).tobytes(),
        lease_slot=0,
        lease_stamp=1,
        is_digested=True,
    )


def greeting(message: Message) -> bytes:
    """A frame from before the proofs, which nobody signs."""
    header = encode(message)
    return FrameSigner().prefix(header, 0) + header


class TestFrames:
    def test_a_peer_that_is_gone_in_the_middle_of_a_frame_is_lost(
        self, peer: RawPeer, expected: Expected
    ) -> None:
        whole = peer.frame(make_push(), BLOCK)
        with peer:
            peer.send_bytes(whole[: len(whole) // 2])
        assert isinstance(expected.outcome.wait().error, PeerLost)

    @pytest.mark.parametrize("at", [8, 30], ids=["signature", "header"])
    def test_a_frame_with_a_changed_bit_ends_its_connection(
        self, peer: RawPeer, expected: Expected, at: int
    ) -> None:
        forged = bytearray(peer.frame(make_push(), BLOCK))
        forged[at] ^= 1
        peer.send_bytes(bytes(forged))
        with pytest.raises(MalformedFrame, match="signature is wrong"):
            raise expected.outcome.wait().error or AssertionError
        assert peer.receive() is None

    def test_a_frame_that_is_replayed_ends_its_connection(self, peer: RawPeer, expected: Expected) -> None:
        attach = peer.frame(Attach(slot=0, generation=1))
        peer.send_bytes(attach + attach)
        with pytest.raises(MalformedFrame, match="repeated"):
            raise expected.outcome.wait().error or AssertionError

    def test_a_header_that_is_no_message_ends_its_connection(self, peer: RawPeer, expected: Expected) -> None:
        peer.send_bytes(peer.frame_of(b"\xc1 is no MessagePack"))
        with pytest.raises(MalformedFrame, match="cannot be decoded"):
            raise expected.outcome.wait().error or AssertionError

    @pytest.mark.parametrize(
        ("message", "payload", "reason"),
        [
            (Ended(generation=1), b"", "a Ended is out of place"),
            (Ready(frame_bytes=1), b"", "a Ready is out of place"),
            (make_push(), b"", "0 bytes for 1 blocks"),
            (make_push(), BLOCK[:100], "rows of 100 bytes, 4096 are expected"),
            (make_push(digests=bytes(7)), BLOCK, "digests of 7 bytes"),
            (make_lend(), b"", "lent over a link that carries them"),
            (Digests(slot=0, generation=1, positions=bytes(4), digests=bytes(8)), b"", "not lent"),
        ],
    )
    def test_a_message_that_makes_no_sense_ends_its_connection(
        self, peer: RawPeer, expected: Expected, message: Message, payload: bytes, reason: str
    ) -> None:
        peer.send(message, payload)
        with pytest.raises(MalformedFrame, match=reason):
            raise expected.outcome.wait().error or AssertionError

    @pytest.mark.parametrize(
        ("push", "error"),
        [
            (make_push(), ChecksumMismatch),
            (make_push(digests=b""), ChecksumMismatch),
            (make_push(position=7), BlockOutOfRange),
        ],
    )
    def test_blocks_that_are_not_what_was_promised_end_their_transfer_and_no_other(
        self, receiver: End, peer: RawPeer, expected: Expected, push: Push, error: type[TransferError]
    ) -> None:
        other = receiver.expect([0], [9])
        peer.send(Attach(slot=1, generation=2))
        peer.send(push, BLOCK)
        assert isinstance(expected.outcome.wait().error, error)
        ended = peer.receive()
        assert isinstance(ended, Ended)
        assert (ended.generation, ended.error) == (1, error.__name__)
        assert not other.outcome.is_called
        receiver.agent.fence(other.transfer_id, "enough")

    def test_kv_heads_of_another_rank_are_refused(self, receiver: End, expected: Expected) -> None:
        with RawPeer(receiver.agent.endpoints[0]) as liar:
            liar.introduce()
            liar.send(Attach(slot=0, generation=1, first_head=3, heads=2))
            ended = liar.receive()
        assert isinstance(ended, Ended)
        assert ended.error == BadTicket.__name__
        assert "KV heads 3 to 4 do not belong to this rank" in ended.reason
        receiver.agent.fence(expected.transfer_id, "enough")


class TestIntroduction:
    def test_a_recorded_introduction_is_refused(self, receiver: End) -> None:
        recorded: list[bytes] = []

        class Recorded(RawPeer):
            def frame_of(self, header: bytes, payload: bytes = b"") -> bytes:
                recorded.append(super().frame_of(header, payload))
                return recorded[-1]

        with Recorded(receiver.agent.endpoints[0]) as good:
            assert isinstance(good.introduce(), Ready)
        with RawPeer(receiver.agent.endpoints[0]) as replayed:
            replayed.send_bytes(recorded[0])
            replayed.receive()
            replayed.send_bytes(recorded[1])
            refused = replayed.receive()
            assert isinstance(refused, Refused)
            assert refused.error == "Unauthenticated"
            assert replayed.receive() is None

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (greeting(Ready(frame_bytes=1)), MalformedFrame),
            (greeting(Ended(generation=1)), MalformedFrame),
            (greeting(Challenge(nonce=bytes(16), epoch=bytes(8), mac=bytes(32))), Unauthenticated),
            (bytes(24), MalformedFrame),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", MalformedFrame),
            (b"", PeerLost),
        ],
    )
    def test_a_receiver_that_does_not_introduce_itself_gets_no_block(
        self, make_end: MakeEnd, receiver: End, answer: bytes, error: type[TransferError]
    ) -> None:
        expected = receiver.expect([0], [5])
        ticket = tickets.open_sealed(expected.ticket, SECRET)
        with socket.create_server(("127.0.0.1", 0)) as impostor:
            endpoint = f"tcp://127.0.0.1:{impostor.getsockname()[1]}"
            redirected = msgspec.structs.replace(ticket, endpoints=(endpoint,))
            opened = make_end("tcp").open(tickets.seal(redirected, SECRET))
            opened.session.push([0], [0])
            connection, _ = impostor.accept()
            with connection:
                connection.settimeout(WAIT_S)
                connection.recv(1024)
                connection.sendall(answer)
                with contextlib.suppress(OSError):  # the sender may have closed it by now
                    connection.shutdown(socket.SHUT_WR)
                assert isinstance(opened.outcome.wait().error, error)
        receiver.agent.fence(expected.transfer_id, "enough")

    @pytest.mark.parametrize(
        ("num_blocks", "block_bytes", "error", "reason"),
        [
            (65, 4096, "SchemeUnavailable", "262144 bytes, fewer than its 266240"),
            (1 << 40, 1 << 20, "SchemeUnavailable", "fewer than"),
            (0, 4096, "MalformedFrame", "0 blocks of 4096 bytes"),
            (64, -1, "MalformedFrame", "64 blocks of -1 bytes"),
        ],
    )
    def test_a_peer_whose_pool_is_not_as_it_says_is_refused(
        self, make_end: MakeEnd, num_blocks: int, block_bytes: int, error: str, reason: str
    ) -> None:
        receiver, leases, memory = make_end("shm"), ReadLeases(), shareable_memory(64, 4096)
        assert memory.fd is not None
        with RawPeer(receiver.agent.endpoints[0]) as liar:
            refused = liar.introduce(num_blocks, block_bytes, [memory.fd, leases.fd])
        leases.close()
        os.close(memory.fd)
        assert isinstance(refused, Refused)
        assert refused.error == error
        assert reason in refused.reason

    @pytest.mark.parametrize("block_id", [64, -1])
    def test_a_block_outside_the_pool_that_was_lent_is_refused(
        self, make_end: MakeEnd, block_id: int
    ) -> None:
        receiver, leases, memory = make_end("shm", owner=2), ReadLeases(), shareable_memory(64, 4096)
        expected = receiver.expect([0], [5])
        assert memory.fd is not None
        with RawPeer(receiver.agent.endpoints[0]) as liar:
            assert isinstance(liar.introduce(fds=[memory.fd, leases.fd]), Ready)
            liar.send(Attach(slot=0, generation=1))
            liar.send(make_lend(block_id))
            with pytest.raises(BlockOutOfRange, match=f"block id {block_id} is outside the pool of 64"):
                raise expected.outcome.wait().error or AssertionError
        leases.close()
        os.close(memory.fd)
        assert receiver.read(5) == stamp(2, 5, 4096)


class TestNoMemory:
    def test_more_shared_memory_than_there_can_be_is_refused_with_its_size(self) -> None:
        with pytest.raises(SchemeUnavailable, match=f"{1 << 54} bytes of shared memory"):
            shareable_memory(1 << 30, 1 << 24)

    def test_without_descriptors_left_shared_memory_is_refused_by_name(self) -> None:
        with no_more_descriptors(), pytest.raises(SchemeUnavailable, match="Too many open files"):
            ReadLeases()
        with no_more_descriptors(), pytest.raises(SchemeUnavailable, match="Too many open files"):
            shareable_memory(1, 4096)


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Those that are open stay good."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
