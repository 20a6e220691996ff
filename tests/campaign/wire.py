"""A connection whose messages lie in a queue until the schedule delivers them, or does worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from campaign.pool import Pause

from baton.kvtransfer.carrier import Lease
from baton.kvtransfer.copying import CopyingPacker
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
        self.scheme = scheme
        self.wire: list[Frame] = []
        self.is_closed = False
        self._is_pulling = False
        self._has_frames = False

    def send(self, message: Message) -> None:
        if not self.is_closed:
            self.wire.append(Frame(encode(message), b""))
        self.node.pause()

    def flush(self) -> None:
        """As on a socket, the caller's own thread sends what it can, unless another is sending just then."""
        self._has_frames = True
        self.pull()
        self.node.pause()

    @property
    def could_send(self) -> bool:
        return self._has_frames and not self._is_pulling and not self.is_closed

    def pull(self) -> None:
        """Asks for one frame, if no other thread is about it, and puts it on the wire."""
        if not self.could_send:
            return
        self._is_pulling, self._has_frames = True, False
        frame = self.owner.next_frame()
        self._is_pulling = False
        if frame is None:
            return
        self._has_frames = True
        if not self.is_closed:
            self.wire.append(Frame(encode(frame.message), bytes(frame.payload)))

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
        self.far.wire.clear()
        self.owner.on_closed(error)


class PausingCopyingPacker(CopyingPacker):
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


AnyPacker = PausingCopyingPacker | PausingMappingPacker
