"""Staging buffers on a GPU: as `staging`, for blocks that never see host memory.

The receiver takes what arrived in a buffer as lent by itself, so that the inbox lands and verifies it as it does
what `cuda-ipc` lends: on the device.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from baton.kvtransfer.block_array import Ids
from baton.kvtransfer.carrier import NO_PAYLOAD, Carried, Loan, positions_of
from baton.kvtransfer.device_blocks import DeviceBlockArray
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.link import Pieces
from baton.kvtransfer.messages import Digests, Lend, Message, Push
from baton.kvtransfer.staging import NOTHING_RECEIVED, STAGES, StagingPacker, StagingUnpacker

FRAME_BYTES = 32 << 20
"""So much that starting a few kernels costs little beside it."""

MAX_FRAME_BLOCKS = 8192
"""So that the ids of a frame of small blocks stay within the limit of a frame's header."""


def frame_blocks(block_bytes: int) -> int:
    return max(1, min(MAX_FRAME_BLOCKS, FRAME_BYTES // block_bytes))


def _buffers(blocks: DeviceBlockArray) -> list[Tensor]:
    size_bytes = frame_blocks(blocks.block_bytes) * blocks.block_bytes
    return [torch.empty(size_bytes, dtype=torch.uint8, device=blocks.device) for _ in range(STAGES)]


class DeviceStagingPacker(StagingPacker):
    def __init__(self, blocks: DeviceBlockArray) -> None:
        super().__init__(blocks, checksum=True)
        self.max_blocks = frame_blocks(blocks.block_bytes)
        self._pool = blocks
        self._buffers = _buffers(blocks)
        self._staged = self._buffers[0]
        self._frames = 0

    def pack(self, block_ids: Ids) -> Carried:
        self._frames += 1
        buffer = self._buffers[self._frames % STAGES].view(-1, self._pool.block_bytes)
        digests = self._pool.collect(block_ids, buffer)
        self._staged = buffer[: len(block_ids)].view(-1)
        return Carried(digests.tobytes(), NO_PAYLOAD)

    def staged(self, payload: Pieces) -> Tensor:
        return self._staged


class DeviceStagingUnpacker(StagingUnpacker):
    def __init__(self, blocks: DeviceBlockArray) -> None:
        self._block_bytes = blocks.block_bytes
        self.buffers = _buffers(blocks)
        self._as_pools = {
            buffer.data_ptr(): DeviceBlockArray(buffer.view(-1, blocks.block_bytes))
            for buffer in self.buffers
        }
        self._staged = self._as_pools[self.buffers[0].data_ptr()]

    def messages(self, push: Push, received: Tensor) -> Iterator[tuple[Message, memoryview]]:
        num_blocks, rest = divmod(received.nbytes, self._block_bytes)
        if rest or len(push.positions) != 4 * num_blocks:
            raise MalformedFrame(f"{received.nbytes} bytes for {len(push.positions) // 4} blocks")
        self._staged = self._as_pools[received.data_ptr()]
        slot, generation, positions = push.slot, push.generation, push.positions
        lend = Lend(
            slot=slot,
            generation=generation,
            positions=positions,
            block_ids=np.arange(num_blocks, dtype=np.int32).tobytes(),
            lease_slot=0,
            lease_stamp=0,
            is_digested=True,
        )
        yield lend, NOTHING_RECEIVED
        said = Digests(slot=slot, generation=generation, positions=positions, digests=push.digests)
        yield said, NOTHING_RECEIVED

    def borrow(self, lend: Lend) -> Loan:
        """The buffer is this process's own, so the loan stands."""
        return Loan(positions_of(lend.positions), self._staged, positions_of(lend.block_ids), lambda: True)

    def close(self) -> None:
        """Nothing of the peer's is held."""
