"""The two ends of a `ucx` link: the words go over its socket, the bytes over UCX.

sender                                  receiver
Wire                  ->                                   (where its ring of frames lies, and the key to it)
                      <-                Wired              (a first read went through)
Push                  ->                                   (the frame lies in the ring's next slot)
                                        reads the slot, verifies, writes its pool
                      <-                Taken              (the slot may be used again)

A sender packs no more frames than its ring has slots, so a slow receiver slows it down, and neither holds more
than the ring. What the pool's blocks are after that does not matter to a read: only the ring is ever read.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from baton.kvtransfer import ucp
from baton.kvtransfer.carrier import NO_PAYLOAD
from baton.kvtransfer.errors import MalformedFrame, PeerLost, SchemeUnavailable, TransferError, from_peer
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.link import Outbound, unexpected
from baton.kvtransfer.messages import Message, Push, Refused, Taken, Wire, Wired
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.stream_link import StreamLink
from baton.kvtransfer.ucx_worker import UcxWorker

SLOTS = 2
"""Frames of a ring: one is read while the next is packed."""

MARK_BYTES = 16
"""A random word at the ring's start, blanked when the ring goes."""

MAX_FRAME_BYTES = 1 << 30
"""What the peer may ask a ring's slot to be."""

SPINS = 200
"""Looks at a read before the I/O thread goes to sleep over it; on one host most end within the first few."""

MAX_WAITING = 16_384
"""Messages that may come behind a frame whose bytes have not; a sender that goes on for longer is cut off."""


class UcxSender:
    """Between a `StreamLink` and its `SendChannel`: puts each frame into the ring before it is announced."""

    def __init__(
        self,
        link: StreamLink,
        channel: SendChannel,
        context: Any,
        io: IOThread,
        frame_bytes: int,
    ) -> None:
        """frame_bytes: the longest payload that the peer takes. Raises SchemeUnavailable where UCX has no room."""
        self._link = link
        self._channel = channel
        self._frame_bytes = frame_bytes
        self._outcome: asyncio.Future[TransferError | None] = io.loop.create_future()
        self._sent = self._taken = 0
        if not 0 < frame_bytes <= MAX_FRAME_BYTES:
            raise MalformedFrame(f"frames of {frame_bytes} bytes: 1 to {MAX_FRAME_BYTES} are possible")
        self._ring = ucp.ReadableMemory(context, MARK_BYTES + SLOTS * frame_bytes)
        self._bytes = self._ring.bytes.data
        try:
            self._worker = UcxWorker(context, io, lambda: None)
        except SchemeUnavailable:
            self._ring.close()
            raise
        mark = secrets.token_bytes(MARK_BYTES)
        self._bytes[:MARK_BYTES] = mark
        address, key = self._ring.address, self._ring.key
        link.send(Wire(worker=self._worker.address, address=address, key=key, mark=mark))

    async def wired(self) -> None:
        """Returns once blocks can leave. Raises what closed the link before."""
        error = await self._outcome
        if error is not None:
            raise error

    def _settle(self, error: TransferError | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(error)

    def next_frame(self) -> Outbound | None:
        if self._sent - self._taken >= SLOTS:
            return None
        frame = self._channel.next_frame()
        if frame is None or not isinstance(frame.message, Push):
            return frame
        frame_bytes = sum(map(len, frame.payload))
        assert frame_bytes <= self._frame_bytes, "a frame longer than the peer takes"
        at = slot_start(self._sent, self._frame_bytes)
        for piece in frame.payload:
            self._bytes[at : at + len(piece)] = piece
            at += len(piece)
        self._sent += 1
        return Outbound(msgspec.structs.replace(frame.message, staged_bytes=frame_bytes), NO_PAYLOAD)

    def on_message(self, message: Message, payload: memoryview) -> None:
        match message:
            case Taken() if self._taken < self._sent:
                self._taken += 1
                self._link.flush()
            case Wired():
                self._settle(None)
            case Refused():
                raise from_peer(message.error, f"refused by the peer: {message.reason}")
            case Taken():
                raise unexpected(message)
            case _:
                self._channel.on_message(message, payload)

    def on_closed(self, error: TransferError) -> None:
        self._settle(error)
        self._bytes[:MARK_BYTES] = bytes(MARK_BYTES)
        self._worker.close()
        self._ring.close()
        self._channel.on_closed(error)


class UcxReceiver:
    """Between a `StreamLink` and its `ReceiveChannel`: reads each frame's bytes before it is passed on."""

    def __init__(
        self,
        link: StreamLink,
        channel: ReceiveChannel,
        context: Any,
        io: IOThread,
        frame_bytes: int,
        stall_timeout_s: float,
    ) -> None:
        """stall_timeout_s: longest that one read may take."""
        self._link = link
        self._channel = channel
        self._io = io
        self._stall_timeout_s = stall_timeout_s
        self._frame = memoryview(bytearray(frame_bytes))
        self._mark = b""
        self._frames = 0
        self._ring: ucp.RemoteMemory | None = None
        self._worker = UcxWorker(context, io, self._on_progress)
        self._waiting: deque[Message] = deque()
        self._read: ucp.Read | None = None
        self._then: Callable[[], None] = self._advance
        self._stall: asyncio.TimerHandle | None = None

    # --- messages, each after the bytes of those before it -------------------------------------------------

    def on_message(self, message: Message, payload: memoryview) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise PeerLost(f"{MAX_WAITING} messages came behind a frame whose bytes did not")
        self._waiting.append(message)
        self._advance()

    def next_frame(self) -> Outbound | None:
        return self._channel.next_frame()

    def _advance(self) -> None:
        while self._read is not None or self._waiting:
            if self._read is None:
                self._handle(self._waiting.popleft())
            elif self._read.is_done():
                self._end_read()
                self._then()
            else:
                return

    def _handle(self, message: Message) -> None:
        match message:
            case Wire() if self._ring is None:
                self._wire(message)
            case Push() if self._ring is not None:
                self._fetch(message)
            case Wire() | Push():
                raise unexpected(message)
            case _:
                self._channel.on_message(message, memoryview(b""))

    def _wire(self, wire: Wire) -> None:
        """Reads the mark, for a way over UCX that does not work has to be found out now."""
        if len(wire.mark) != MARK_BYTES:
            raise MalformedFrame(f"a mark of {len(wire.mark)} bytes, not {MARK_BYTES}")
        self._mark = wire.mark
        try:
            self._ring = ucp.RemoteMemory(self._worker.connect(wire.worker), wire.address, wire.key)
        except PeerLost as error:
            self._link.send(Refused(error=type(error).__name__, reason=str(error)))
            raise
        self._check_mark(lambda: self._link.send(Wired()))

    def _fetch(self, push: Push) -> None:
        if not 0 < push.staged_bytes <= len(self._frame):
            raise MalformedFrame(f"{push.staged_bytes} bytes: 1 to {len(self._frame)} make a frame here")
        start = slot_start(self._frames, len(self._frame))
        self._frames += 1
        # A peer that ends frees its ring, whose bytes may then be anything. The digests would tell.
        take = (
            (lambda: self._take(push)) if push.digests else lambda: self._check_mark(lambda: self._take(push))
        )
        self._begin_read(start, self._frame[: push.staged_bytes], take)

    def _take(self, push: Push) -> None:
        self._link.send(Taken())
        self._channel.on_message(push, self._frame[: push.staged_bytes])

    def _check_mark(self, then: Callable[[], None]) -> None:
        mark = bytearray(MARK_BYTES)

        def compare() -> None:
            if mark != self._mark:
                raise PeerLost("the peer's frames are gone")
            then()

        self._begin_read(0, memoryview(mark), compare)

    # --- reads, one at a time ------------------------------------------------------------------------------

    def _begin_read(self, offset: int, target: memoryview, then: Callable[[], None]) -> None:
        assert self._ring is not None
        self._read, self._then = self._ring.read(offset, target), then
        for _ in range(SPINS):
            if self._read.is_done():
                return
            self._worker.progress()
        late = PeerLost(f"the peer's memory could not be read within {self._stall_timeout_s} s")
        self._stall = self._io.loop.call_later(self._stall_timeout_s, self._link.close, late)
        self._io.post(self._worker.attend)

    def _end_read(self) -> None:
        self._read = None
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _on_progress(self) -> None:
        try:
            self._advance()
        except TransferError as error:
            self._link.close(error)

    def on_closed(self, error: TransferError) -> None:
        self._waiting.clear()
        self._end_read()
        self._worker.disconnect()
        if self._ring is not None:
            self._ring.close()
        self._worker.close()
        del self._then  # refers to this end, which would be left to the garbage collector
        self._channel.on_closed(error)


def slot_start(frame: int, frame_bytes: int) -> int:
    """Where in the ring frame number `frame` begins."""
    return MARK_BYTES + frame % SLOTS * frame_bytes
