"""A link over a socket: what it has promised to send it sends, whatever becomes of the memory it lay in."""

from __future__ import annotations

import socket

import pytest

from baton.kvtransfer.errors import PeerLost, TransferError
from baton.kvtransfer.framing import FrameReader
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.link import Outbound, Pieces
from baton.kvtransfer.messages import Message, Push
from baton.kvtransfer.stream_link import StreamLink

PIECE_BYTES = 1 << 20


class OneFrame:
    """Has these pieces to send, once."""

    def __init__(self, pieces: Pieces) -> None:
        self._frames = [Outbound(Push(slot=0, generation=1, positions=b"", digests=b""), pieces)]

    def next_frame(self) -> Outbound | None:
        return self._frames.pop() if self._frames else None

    def on_message(self, message: Message, payload: memoryview) -> None:
        raise AssertionError(f"nobody sends a {message}")

    def on_closed(self, error: TransferError) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("is_released", [True, False])
def test_after_a_release_the_payloads_memory_may_change(is_released: bool) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    pieces = [bytearray(b"a" * PIECE_BYTES), bytearray(b"b" * PIECE_BYTES)]
    io = IOThread("test")
    link = StreamLink(io, near)
    io.ask(lambda: link.start(OneFrame(tuple(map(memoryview, pieces)))))
    try:
        link.flush()  # more than the socket takes
        if is_released:
            link.release_payload()
        for piece in pieces:
            piece[:] = b"x" * PIECE_BYTES
        reader = FrameReader()
        reader.allow(2 * PIECE_BYTES)
        frame = reader.read(far.recv_into)
        assert frame is not None
        is_whole = bytes(frame.payload) == b"a" * PIECE_BYTES + b"b" * PIECE_BYTES
        assert is_whole == is_released
    finally:
        io.ask(lambda: link.close(PeerLost("the test is over")))
        io.close()
        far.close()
