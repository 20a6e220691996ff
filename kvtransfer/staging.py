"""Blocks cross a link beside its frames: from staging buffers of the sender, through a process group, to the
receiver's. The pools themselves are touched by `pack` and by the inbox alone.

`STAGES` buffers on each side, so that one is packed (verified and landed) while another is under way.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from baton.kvtransfer.block_array import BlockArray, Ids
from baton.kvtransfer.carrier import Carried, Unpacker
from baton.kvtransfer.copying import CarryingPacker, CopyingPacker, CopyingUnpacker, max_payload_bytes
from baton.kvtransfer.link import Pieces
from baton.kvtransfer.messages import Message, Push

STAGES = 2

NOTHING_RECEIVED = memoryview(b"")


class StagingPacker(CarryingPacker):
    """What is packed holds until `STAGES` further frames were."""

    @abstractmethod
    def staged(self, payload: Pieces) -> Tensor:
        """What goes over the group for the frame that was packed last, uint8 [n]; no copy. payload: the frame's."""


class StagingUnpacker(Unpacker):
    buffers: Sequence[Tensor]
    """uint8 [most bytes of a frame], `STAGES` of them."""

    @abstractmethod
    def messages(self, push: Push, received: Tensor) -> Iterator[tuple[Message, memoryview]]:
        """What the channel is told, with its payload, once the front of a buffer holds the blocks of `push`.
        Raises MalformedFrame."""


class HostStagingPacker(StagingPacker):
    def __init__(self, blocks: BlockArray, checksum: bool) -> None:
        super().__init__(blocks, checksum)
        self._packers = [CopyingPacker(blocks, checksum) for _ in range(STAGES)]
        self._frames = 0

    def pack(self, block_ids: Ids) -> Carried:
        self._frames += 1
        return self._packers[self._frames % STAGES].pack(block_ids)

    def staged(self, payload: Pieces) -> Tensor:
        (piece,) = payload
        return torch.frombuffer(piece, dtype=torch.uint8)


class HostStagingUnpacker(StagingUnpacker, CopyingUnpacker):
    def __init__(self, blocks: BlockArray) -> None:
        size_bytes = max_payload_bytes(blocks.block_bytes)
        self.buffers = [torch.empty(size_bytes, dtype=torch.uint8) for _ in range(STAGES)]

    def messages(self, push: Push, received: Tensor) -> Iterator[tuple[Message, memoryview]]:
        yield push, received.numpy().data
