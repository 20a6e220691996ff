"""Frames on a byte stream: lengths and signature, header, payload.

    uint32 header bytes | uint32 payload bytes | 16 bytes MAC | header | payload        (little-endian)

Once both sides hold the connection's keys, the MAC is keyed BLAKE2b (RFC 7693) over a frame counter, the
lengths and the header, so that no frame can be forged, altered, left out, repeated or moved. The payload is
covered by the XXH3 digests within the header: sound against faults, not against an attacker on the wire.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from baton.kvtransfer.errors import MalformedFrame

_PREFIX = struct.Struct("<II16s")
_COUNTED = struct.Struct("<QII")
_MAC_BYTES = 16
_EMPTY = memoryview(b"")

MAX_HEADER_BYTES = 256 << 10
MAX_GREETING_BYTES = 1 << 10
"""What a peer may send before it has proved itself."""

ReceiveInto = Callable[[memoryview], int]
"""Fills the front of a buffer and returns the count of bytes, 0 at the end of the stream."""


class FrameSigner:
    """Counts and signs the frames of one direction; before `use_key` the MAC is blank."""

    def __init__(self) -> None:
        self._key = b""
        self._frames = 0

    def use_key(self, key: bytes) -> None:
        self._key = key

    def mac(self, header: bytes | memoryview, payload_bytes: int) -> bytes:
        if not self._key:
            return bytes(_MAC_BYTES)
        mac = blake2b(key=self._key, digest_size=_MAC_BYTES)
        mac.update(_COUNTED.pack(self._frames, len(header), payload_bytes))
        mac.update(header)
        self._frames += 1
        return mac.digest()

    def prefix(self, header: bytes, payload_bytes: int) -> bytes:
        return _PREFIX.pack(len(header), payload_bytes, self.mac(header, payload_bytes))


@dataclass(frozen=True, slots=True)
class Frame:
    """payload is the reader's own buffer and holds until the next `read`."""

    header: memoryview
    payload: memoryview


class FrameReader:
    """Puts frames together from whatever pieces a stream arrives in. Its buffers grow to what the largest frame
    needs; beyond that it allocates nothing a frame."""

    def __init__(self) -> None:
        self.signer = FrameSigner()
        self._max_header_bytes, self._max_payload_bytes = MAX_GREETING_BYTES, 0
        self._prefix = memoryview(bytearray(_PREFIX.size))
        self._header_buffer = self._payload_buffer = _EMPTY
        self._header = self._payload = _EMPTY
        self._target, self._got = self._prefix, 0

    def allow(self, payload_bytes: int) -> None:
        """From now on headers of full size and payloads of up to `payload_bytes` are taken."""
        self._max_header_bytes, self._max_payload_bytes = MAX_HEADER_BYTES, payload_bytes

    def release(self) -> None:
        """After the last `read`: gives the buffers back, whoever still refers to the reader."""
        self._header_buffer = self._payload_buffer = _EMPTY
        self._header = self._payload = self._target = _EMPTY

    def read(self, receive_into: ReceiveInto) -> Frame | None:
        """The next whole frame, or None at the end of the stream.

        Raises whatever `receive_into` raises (BlockingIOError: call again later) and MalformedFrame.
        """
        while True:
            while self._got < len(self._target):
                count = receive_into(self._target[self._got :])
                if count == 0:
                    return None
                self._got += count
            frame = self._advance()
            if frame is not None:
                return frame

    def _advance(self) -> Frame | None:
        """Called with a full target: picks the next one, or returns the frame that is complete now."""
        if self._target is self._prefix:
            self._size_up()
            self._target, self._got = self._header, 0
            return None
        if self._target is self._header:
            self._verify()
            if self._payload:
                self._target, self._got = self._payload, 0
                return None
        frame = Frame(self._header, self._payload)
        self._target, self._got = self._prefix, 0
        return frame

    def _size_up(self) -> None:
        header_bytes, payload_bytes, _ = _PREFIX.unpack(self._prefix)
        if not 0 < header_bytes <= self._max_header_bytes:
            limit = self._max_header_bytes
            raise MalformedFrame(f"a header of {header_bytes} bytes: 1 to {limit} are allowed here")
        if payload_bytes > self._max_payload_bytes:
            raise MalformedFrame(
                f"a payload of {payload_bytes} bytes: at most {self._max_payload_bytes} are allowed here"
            )
        self._header_buffer = _with_room(self._header_buffer, header_bytes, self._max_header_bytes)
        self._payload_buffer = _with_room(self._payload_buffer, payload_bytes, self._max_payload_bytes)
        self._header = self._header_buffer[:header_bytes]
        self._payload = self._payload_buffer[:payload_bytes]

    def _verify(self) -> None:
        _, payload_bytes, mac = _PREFIX.unpack(self._prefix)
        if not hmac.compare_digest(mac, self.signer.mac(self._header, payload_bytes)):
            raise MalformedFrame("a frame's signature is wrong: forged, altered, repeated or out of order")


def _with_room(buffer: memoryview, needed_bytes: int, limit_bytes: int) -> memoryview:
    """`buffer`, or where that is too small a new one, of a power of two bytes or of the limit."""
    if needed_bytes <= len(buffer):
        return buffer
    return memoryview(bytearray(min(limit_bytes, 1 << (needed_bytes - 1).bit_length())))
