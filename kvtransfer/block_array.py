"""A pool in host memory, as an array whose items are whole blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baton.kvtransfer import rows
from baton.kvtransfer.base import BlockIds, KVMemory
from baton.kvtransfer.errors import BlockOutOfRange, SchemeUnavailable
from baton.kvtransfer.rows import Digests
from baton.kvtransfer.rows import Ids as Ids

CHUNK_BYTES = 256 << 10
"""Of blocks that are checksummed together: they stay in the L2 cache, where numpy has to read them twice."""

MAX_CHUNK_BLOCKS = 1024
"""So that the ids of a frame of tiny blocks stay within the limit of a frame's header."""

Blocks = rows.Rows
"""[n] items of `block_bytes` bytes each."""


def chunk_blocks(block_bytes: int) -> int:
    """Blocks that are checksummed together; both sides of a transfer derive the same number."""
    return max(1, min(MAX_CHUNK_BLOCKS, CHUNK_BYTES // block_bytes))


def as_ids(values: BlockIds) -> Ids:
    """Raises BlockOutOfRange for what is no list of whole numbers."""
    ids = np.asarray(values)
    if ids.size == 0:
        return np.empty(0, np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise BlockOutOfRange(
            f"positions and block ids are lists of whole numbers, not {ids.dtype} {ids.shape}"
        )
    return ids.astype(np.int64, copy=False)


class BlockArray:
    """Reads and writes whole blocks of one contiguous buffer."""

    is_on_host = True
    """Whether `units` and `views` can be had."""

    def __init__(self, buffer: NDArray[np.uint8], block_bytes: int) -> None:
        """buffer: uint8 [num_blocks * block_bytes], contiguous."""
        self.block_bytes = block_bytes
        self.chunk_blocks = chunk_blocks(block_bytes)
        self._items: Blocks = buffer.view(np.dtype((np.void, block_bytes)))

    @classmethod
    def of(cls, memory: KVMemory) -> BlockArray:
        """Raises SchemeUnavailable where the pool is not in host memory."""
        blocks = memory.blocks
        if blocks.device.type != "cpu":
            raise SchemeUnavailable(f"the pool lies on {blocks.device}, not in host memory")
        assert str(blocks.dtype) == "torch.uint8", blocks.dtype
        assert blocks.dim() == 2, blocks.shape
        assert blocks.is_contiguous(), blocks.stride()
        array: NDArray[np.uint8] = blocks.numpy()
        return cls(array.reshape(-1), memory.block_bytes)

    def release(self) -> None:
        """Lets go of the memory; the array has no blocks from now on."""
        self._items = np.empty(0, self._items.dtype)

    def __len__(self) -> int:
        return len(self._items)

    def rows(self, buffer: memoryview) -> Blocks:
        """`buffer`, a whole number of blocks long, as blocks; no copy."""
        return np.frombuffer(buffer, self._items.dtype)

    def units(self, unit_bytes: int) -> Blocks:
        """The whole pool as items of `unit_bytes`, which divide a block; no copy. Hold it no longer than a call."""
        return self._items.view(np.dtype((np.void, unit_bytes)))

    def require_ids(self, ids: Ids) -> None:
        """Raises BlockOutOfRange naming the first block id that this pool does not have."""
        is_outside = ids.view(np.uint64) >= len(self)  # as unsigned, what is negative is too large as well
        if np.count_nonzero(is_outside):
            raise BlockOutOfRange(f"block id {ids[is_outside][0]} is outside the pool of {len(self)} blocks")

    def settle(self) -> None:
        """Returns once what the calling thread has written to the blocks is there for others to read."""

    # Ids were checked before.

    def digest(self, ids: Ids) -> Digests:
        return rows.digest(self._items, ids, len(ids), self.chunk_blocks)

    def gather(self, ids: Ids, buffer: Blocks, with_digests: bool) -> Digests:
        """Copies blocks `ids` to the front of `buffer`."""
        return rows.gather(self._items, ids, buffer, self.chunk_blocks, with_digests)

    def views(self, ids: Ids) -> tuple[memoryview, ...]:
        """Each of the blocks `ids` where it lies."""
        pool = memoryview(self._items.view(np.uint8).data)
        size = self.block_bytes
        return tuple(pool[block_id * size : (block_id + 1) * size] for block_id in ids.tolist())

    def scatter(self, ids: Ids, source: Blocks) -> None:
        """Writes source[i] to block ids[i]."""
        rows.move(source, rows.IN_ORDER, self._items, ids, self.chunk_blocks, with_digests=False)

    def copy_from(self, other: BlockArray, source_ids: Ids, ids: Ids, with_digests: bool) -> Digests:
        """Writes block source_ids[i] of `other` to block ids[i]. The digests are of what was written."""
        return rows.move(other._items, source_ids, self._items, ids, self.chunk_blocks, with_digests)

    def clear(self, ids: Ids) -> None:
        """Writes zeros to blocks `ids`."""
        self._items[ids] = bytes(self.block_bytes)
