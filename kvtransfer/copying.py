"""Blocks cross a link as the bytes of its frames: `tcp` and `loopback`.

The sender gathers a frame's blocks into one buffer (where they are checksummed while in the cache) and the
link sends it from there: the pool is read only within `pack`, so a fence has nothing more to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baton.kvtransfer.block_array import STAGING_BYTES, BlockArray, Blocks, Ids, chunk_blocks
from baton.kvtransfer.carrier import Lease, Packed, Packer, Unpacker
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.messages import Push

FRAME_BYTES = 512 << 10
"""Half of a usual L2 cache: with 1 MiB a byte costs half as much again on either side (measured)."""


def max_payload_bytes(block_bytes: int) -> int:
    """What a frame may carry: `FRAME_BYTES`, but always one block."""
    return max(FRAME_BYTES, block_bytes)


class CopyingPacker(Packer):
    def __init__(self, blocks: BlockArray, checksum: bool) -> None:
        super().__init__(blocks, checksum)
        chunk_bytes = self.chunk_blocks * blocks.block_bytes
        self.max_chunks = max(1, FRAME_BYTES // max(chunk_bytes, STAGING_BYTES))
        self._buffer = memoryview(bytearray(self.max_chunks * chunk_bytes))
        self._rows = blocks.rows(self._buffer)

    def pack(self, block_ids: Ids) -> Packed:
        def gather() -> Iterator[Blocks]:
            for start in range(0, len(block_ids), self.chunk_blocks):
                ids = block_ids[start : start + self.chunk_blocks]
                yield self._blocks.gather(ids, self._rows[start:])

        if self._checksum:
            digests = self._digests(gather())
        else:
            digests = b""
            self._blocks.gather(block_ids, self._rows)
        return Packed(digests, b"", self._buffer[: len(block_ids) * self._blocks.block_bytes])

    def grant(self) -> Lease:
        return Lease()

    def revoke(self, lease: Lease) -> None:
        """Nobody but `pack` reads the pool."""


def carried_rows(num_blocks: int, payload: memoryview) -> Iterator[Blocks]:
    """The rows of each chunk in turn, where they lie in the frame. Raises MalformedFrame."""
    row_bytes, rest = divmod(len(payload), num_blocks)
    if rest or not row_bytes:
        raise MalformedFrame(f"{len(payload)} bytes for {num_blocks} blocks")
    rows = np.frombuffer(payload, np.dtype((np.void, row_bytes)))
    step = chunk_blocks(row_bytes)
    for start in range(0, num_blocks, step):
        yield rows[start : start + step]


class CopyingUnpacker(Unpacker):
    def _rows(self, push: Push, num_blocks: int, payload: memoryview) -> Iterator[Blocks]:
        return carried_rows(num_blocks, payload)

    def close(self) -> None:
        """Nothing of the peer's is held."""
