"""A connection whose messages lie in a queue until the schedule delivers them, or does worse.

By the scheme "direct" it sends blocks from where they lie in the pool, piece by piece, as a socket does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from campaign.pool import Pause

from baton.kvtransfer.carrier import Lease
from baton.kvtransfer.copying import CopyingPacker, DirectPacker
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.link import Link, LinkOwner
from baton.kvtransfer.mapping import MappingPacker
from baton.kvtransfer.messages import Message, decode, encode
from baton.kvtransfer.stats import Tally

if TYPE_CHECKING:
    from campaign.node import Node


class Frame(NamedTuple):
    header: bytes
    payload: bytes

    @property
    def message(self) -> Message:
        message: Message = decode(self.header)
        return message


class QueuedLink(Link):
    """One end. `wire` holds what this end has sent and the other has not yet got, oldest first."""

    owner: LinkOwner
    far: QueuedLink

    def __init__(self, node: Node, scheme: str) -> None:
        self.node = node
        self.wire: list[Frame] = []
        self.is_closed = False
        self._sends_from_pool = scheme == "direct"
        self._control: list[Frame] = []
        self._unsent: deque[memoryview] = deque()
        self._sent: list[bytes] = []
        self._is_sending = False
        self._has_frames = False

    def send(self, message: Message) -> None:
        if not self.is_closed:
            self._control.append(Frame(encode(message), b""))
            self._send_control()
        self.node.pause()

    def _send_control(self) -> None:
        """Unless a frame is under way: that comes first."""
        if not self._is_sending and not self._unsent:
            self.wire += self._control
            self._control = []

    def flush(self) -> None:
        """As on a socket, the caller's own thread sends what it can, unless another is sending just then."""
        self._has_frames = True
        self.go_on()
        self.node.pause()

    @property
    def would_wait(self) -> bool:
        """Whether `release_payload` and `close` would wait for another thread just now."""
        return self._sends_from_pool and self._is_sending

    @property
    def has_rest(self) -> bool:
        """Whether a part of a frame waits in the pool for the socket to take it."""
        return self._sends_from_pool and bool(self._unsent)

    @property
    def could_send(self) -> bool:
        return bool(self._has_frames or self._unsent) and not self._is_sending and not self.is_closed

    def go_on(self) -> None:
        """Sends some more of the frame under way, or asks for the next, if no other thread is about it."""
        if not self.could_send:
            return
        self._is_sending = True
        if not self._unsent:
            self._load()
        if self._unsent:
            self._transmit()
        self._is_sending = False
        self._send_control()

    def _load(self) -> None:
        self._has_frames = False
        frame = self.owner.next_frame()
        if frame is None or self.is_closed:
            return
        self._has_frames = True
        payload = frame.payload if self._sends_from_pool else (memoryview(b"".join(frame.payload)),)
        self._unsent = deque((memoryview(encode(frame.message)), *payload))
        self._sent = []

    def _transmit(self) -> None:
        """All of the frame; or, from the pool, until the socket is full, which is after any piece."""
        self._sent.append(bytes(self._unsent.popleft()))
        while self._unsent:
            if self._sends_from_pool:
                self.node.pause()
                if self.node.is_stalled():
                    return
            self._sent.append(bytes(self._unsent.popleft()))
        if not self.is_closed:
            self.wire.append(Frame(self._sent[0], b"".join(self._sent[1:])))

    def release_payload(self) -> None:
        assert not self.would_wait, "a thread that has to wait cannot have been chosen"
        self._unsent = deque(memoryview(bytes(piece)) for piece in self._unsent)

    def receive(self, frame: Frame) -> None:
        """On this end's I/O thread."""
        if self.is_closed:
            return
        try:
            self.owner.on_message(frame.message, memoryview(frame.payload))
        except TransferError as error:
            self.close(error)

    def close(self, error: TransferError) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._unsent.clear()
        self._control.clear()
        self.far.wire.clear()
        self.owner.on_closed(error)


class PausingCopyingPacker(CopyingPacker):
    pause: Pause

    def revoke(self, lease: Lease) -> None:
        self.pause()
        super().revoke(lease)


class PausingDirectPacker(DirectPacker):
    pause: Pause

    def revoke(self, lease: Lease) -> None:
        self.pause()
        super().revoke(lease)


class PausingMappingPacker(MappingPacker):
    pause: Pause

    def revoke(self, lease: Lease) -> None:
        self.pause()
        super().revoke(lease)


class PausingTally(Tally):
    """Counting comes between the steps of a frame, on either side."""

    pause: Pause

    def add(self, blocks: int, num_bytes: int) -> None:
        super().add(blocks, num_bytes)
        self.pause()


AnyPacker = PausingCopyingPacker | PausingDirectPacker | PausingMappingPacker
