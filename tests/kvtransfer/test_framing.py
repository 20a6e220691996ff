"""Frames: whole whatever the pieces, and refused when anything about them is wrong."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.framing import MAX_GREETING_BYTES, FrameReader, FrameSigner

KEY = bytes(range(32))
Parts = list[tuple[bytes, bytes]]
frames = st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=8)


def signed(parts: Parts) -> list[bytes]:
    signer = FrameSigner()
    signer.use_key(KEY)
    return [signer.prefix(header, len(payload)) + header + payload for header, payload in parts]


def make_reader() -> FrameReader:
    reader = FrameReader()
    reader.signer.use_key(KEY)
    reader.allow(payload_bytes=300)
    return reader


def read_all(reader: FrameReader, wire: bytes, piece_bytes: int = 1 << 20) -> Parts:
    """All frames of `wire`, of which every read gets `piece_bytes` at most."""
    stream = io.BytesIO(wire)
    parts = []
    while (frame := reader.read(lambda target: stream.readinto(target[:piece_bytes]))) is not None:
        parts.append((bytes(frame.header), bytes(frame.payload)))
    return parts


@given(frames, st.integers(1, 50))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(parts: Parts, piece_bytes: int) -> None:
    assert read_all(make_reader(), b"".join(signed(parts)), piece_bytes) == parts


def test_a_frame_can_be_read_on_after_the_stream_ran_dry() -> None:
    (wire,) = signed([(b"header", b"payload")])
    pieces = [wire[:5], wire[5:30], wire[30:]]
    reader = make_reader()

    def receive(target: memoryview) -> int:
        if not pieces or not pieces[0]:
            raise BlockingIOError
        size = min(len(target), len(pieces[0]))
        target[:size] = pieces[0][:size]
        pieces[0] = pieces[0][size:]
        return size

    for _ in range(2):
        with pytest.raises(BlockingIOError):
            reader.read(receive)
        pieces.pop(0)
    frame = reader.read(receive)
    assert frame is not None
    assert bytes(frame.payload) == b"payload"


@given(frames.filter(bool), st.data())
def test_no_bit_of_prefix_or_header_can_be_changed(parts: Parts, data: st.DataObject) -> None:
    wires = signed(parts)
    at = data.draw(st.integers(0, len(parts) - 1))
    bit = data.draw(st.integers(0, 8 * (24 + len(parts[at][0])) - 1))
    forged = bytearray(wires[at])
    forged[bit // 8] ^= 1 << bit % 8
    wires[at] = bytes(forged)
    try:
        got = read_all(make_reader(), b"".join(wires))
    except MalformedFrame:
        return
    assert got == parts[:at]  # a length that grew swallows the rest, and no frame of it comes out


@pytest.mark.parametrize("order", [[0, 0], [1], [1, 0], [0, 2]])
def test_frames_cannot_be_repeated_left_out_or_moved(order: list[int]) -> None:
    wires = signed([(b"zero", b""), (b"one", b""), (b"two", b"")])
    with pytest.raises(MalformedFrame, match="signature"):
        read_all(make_reader(), b"".join(wires[i] for i in order))


def test_a_truncated_stream_gives_only_its_whole_frames() -> None:
    wires = signed([(b"zero", b"payload"), (b"one", b"payload")])
    assert read_all(make_reader(), b"".join(wires)[:-1]) == [(b"zero", b"payload")]


def test_lengths_over_their_limits_are_refused_before_anything_is_read() -> None:
    with pytest.raises(MalformedFrame, match="a payload of 301 bytes: at most 300"):
        read_all(make_reader(), FrameSigner().prefix(b"header", 301))
    with pytest.raises(MalformedFrame, match=f"1 to {MAX_GREETING_BYTES}"):
        read_all(FrameReader(), FrameSigner().prefix(bytes(MAX_GREETING_BYTES + 1), 0))
    with pytest.raises(MalformedFrame, match="at most 0"):
        read_all(FrameReader(), FrameSigner().prefix(b"header", 1))
    with pytest.raises(MalformedFrame, match="a header of 0 bytes"):
        read_all(FrameReader(), FrameSigner().prefix(b"", 0))
