"""What rank 0 of a worker and its other ranks say to each other: MessagePack over a socket pair, which ends with
either process. Rank 0 asks; a `Compute` is followed by nothing, an `Expect` by its answer.
"""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from typing import Any

import msgspec

from baton.engine.chunk_rows import ChunkRows
from baton.engine.engine_config import EngineConfig

_LENGTH = struct.Struct("<I")
_MAX_MESSAGE_BYTES = 256 << 20


class Begin(msgspec.Struct, frozen=True, tag="begin", kw_only=True):
    """What a rank needs to start. meeting_point: file where the ranks find each other. host, kv_port: for `tcp`."""

    rank: int
    engine: EngineConfig
    meeting_point: str
    secret: bytes
    schemes: tuple[str, ...]
    host: str
    kv_port: int


class Compute(msgspec.Struct, frozen=True, tag="compute"):
    rows: list[ChunkRows]


class CopyBlock(msgspec.Struct, frozen=True, tag="copy"):
    source: int
    target: int


class ClearTail(msgspec.Struct, frozen=True, tag="clear"):
    block_id: int
    tokens: int


class Expect(msgspec.Struct, frozen=True, tag="expect", kw_only=True):
    """Answered by Promised or Refused. key: names the transfer from now on, and each further one below."""

    key: int
    positions: list[int]
    block_ids: list[int]
    ttl_s: float
    tokens: int | None


class OpenTicket(msgspec.Struct, frozen=True, tag="open", kw_only=True):
    """deadline_s: monotonic clock, which all processes of a host share."""

    key: int
    ticket: bytes
    deadline_s: float | None


class PushBlocks(msgspec.Struct, frozen=True, tag="push"):
    key: int
    positions: list[int]
    block_ids: list[int]


class Fence(msgspec.Struct, frozen=True, tag="fence"):
    """Answered by Fenced, after which nothing of the transfer lands or is read any more."""

    key: int
    reason: str


Order = Begin | Compute | CopyBlock | ClearTail | Expect | OpenTicket | PushBlocks | Fence


class Present(msgspec.Struct, frozen=True, tag="present"):
    """The rank has started and is about to meet the others."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The rank has its part of the model and its pool."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The rank cannot start; a BatonError by its code."""

    code: str
    message: str
    field: str | None


class Promised(msgspec.Struct, frozen=True, tag="promised"):
    ticket: bytes


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """error: class name in `baton.kvtransfer.errors`."""

    error: str
    message: str


class Fenced(msgspec.Struct, frozen=True, tag="fenced"):
    """The answer to Fence."""


class Ended(msgspec.Struct, frozen=True, tag="ended", kw_only=True):
    """A transfer has ended; see TransferResult. error: class name, empty where it is done. bytes_sent,
    bytes_received: of this rank since its start."""

    key: int
    blocks: int
    bytes: int
    error: str
    message: str
    opened_at_s: float
    first_byte_at_s: float
    last_byte_at_s: float
    done_at_s: float
    scheme: str
    bytes_sent: int
    bytes_received: int


Report = Present | Ready | Failed | Promised | Refused | Fenced | Ended


def _encode_path(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} cannot be sent to a rank")


def _decode_path(kind: type, value: Any) -> Any:
    return kind(value)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_decoder = msgspec.msgpack.Decoder(Order | Report, dec_hook=_decode_path)


class RankChannel:
    """One end. `send` from any thread; `receive` from one."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes `sock` over, connected and blocking."""
        self._sock = sock
        self._reader = sock.makefile("rb")
        self._writing = threading.Lock()

    def send(self, message: Order | Report) -> None:
        """Raises BrokenPipeError where the other end is gone."""
        body = _encoder.encode(message)
        with self._writing:
            self._sock.sendall(_LENGTH.pack(len(body)) + body)

    def receive(self) -> Order | Report | None:
        """The next message; None at the other end's end."""
        try:
            prefix = self._reader.read(_LENGTH.size)
            if len(prefix) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(prefix)
            assert length <= _MAX_MESSAGE_BYTES, f"a message of {length} bytes"
            body = self._reader.read(length)
        except ConnectionResetError:
            return None
        return _decoder.decode(body) if len(body) == length else None

    def shut(self) -> None:
        """Wakes both ends' `receive`; safe from any thread."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._reader.close()
        self._sock.close()
