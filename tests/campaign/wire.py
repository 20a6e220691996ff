"""A connection whose messages lie in a queue until the schedule delivers them, or does worse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from campaign.pool import Pause

from baton.kvtransfer.carrier import Arrival, Chunk, Lease
from baton.kvtransfer.copying import CopyingPacker, CopyingUnpacker
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.link import Link, LinkOwner
from baton.kvtransfer.mapping import MappingPacker, MappingUnpacker
from baton.kvtransfer.messages import Message, Push, decode, encode

if TYPE_CHECKING:
    from campaign.node import Node


class Frame(NamedTuple):
    header: bytes
    payload: bytes

    @property
    def message(self) -> Message:
        return decode(self.header)


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


class PausingCopyingUnpacker(CopyingUnpacker):
    pause: Pause

    def unpack(self, push: Push, payload: memoryview) -> Arrival:
        return _pausing(super().unpack(push, payload), self.pause)


class PausingMappingUnpacker(MappingUnpacker):
    pause: Pause

    def unpack(self, push: Push, payload: memoryview) -> Arrival:
        return _pausing(super().unpack(push, payload), self.pause)


AnyPacker = PausingCopyingPacker | PausingMappingPacker
AnyUnpacker = PausingCopyingUnpacker | PausingMappingUnpacker


def _pausing(arrival: Arrival, pause: Pause) -> Arrival:
    return arrival._replace(chunks=_with_pauses(arrival.chunks, pause))


def _with_pauses(chunks: Iterator[Chunk], pause: Pause) -> Iterator[Chunk]:
    """Others get their turn before a chunk is copied and again before it is verified."""
    while True:
        pause()
        chunk = next(chunks, None)
        if chunk is None:
            return
        pause()
        yield chunk
