"""Blocks cross a link as the bytes of its frames: `tcp` and `loopback`.

The sender gathers a frame's blocks into one buffer (and checksums them on the way) and the link sends it from
there: the pool is read only within `pack`, so a fence has nothing more to wait for. Over a socket, which takes many
pieces at once, larger blocks leave from where they lie.
"""

from __future__ import annotations

from baton.kvtransfer.block_array import CHUNK_BYTES, BlockArray, Ids, chunk_blocks
from baton.kvtransfer.carrier import Carried, Lease, Loan, Packer, Unpacker
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.messages import Lend

FRAME_BYTES = 512 << 10
"""Half of a usual L2 cache: with 1 MiB a byte costs half as much again on either side (measured)."""


def max_payload_bytes(block_bytes: int, frame_bytes: int = FRAME_BYTES) -> int:
    """What a frame may carry: `frame_bytes`, but always one block."""
    return max(frame_bytes, block_bytes)


def max_rows(row_bytes: int, frame_bytes: int = FRAME_BYTES) -> int:
    """Of a frame, in whole chunks."""
    chunk_rows = chunk_blocks(row_bytes)
    return chunk_rows * max(1, frame_bytes // max(chunk_rows * row_bytes, CHUNK_BYTES))


class CarryingPacker(Packer):
    """Nobody but the sender reads its pool, so there is nothing to lend, and no lease."""

    def __init__(self, blocks: BlockArray, checksum: bool, frame_bytes: int = FRAME_BYTES) -> None:
        self.max_blocks = max_rows(blocks.block_bytes, frame_bytes)
        self.is_checked = checksum
        self._blocks = blocks

    def digest(self, block_ids: Ids) -> bytes:
        raise AssertionError("nothing is lent")

    def grant(self) -> Lease:
        return Lease()

    def revoke(self, lease: Lease) -> None:
        """No peer reads anything."""


class CopyingPacker(CarryingPacker):
    def __init__(self, blocks: BlockArray, checksum: bool, frame_bytes: int = FRAME_BYTES) -> None:
        super().__init__(blocks, checksum, frame_bytes)
        self._buffer = memoryview(bytearray(self.max_blocks * blocks.block_bytes))
        self._rows = blocks.rows(self._buffer)

    def pack(self, block_ids: Ids) -> Carried:
        digests = self._blocks.gather(block_ids, self._rows, self.is_checked)
        payload = self._buffer[: len(block_ids) * self._blocks.block_bytes]
        return Carried(digests.tobytes(), (payload,))


class DirectPacker(CarryingPacker):
    """Lets the link send blocks from where they lie. The link copies what it has not sent yet when a session
    ends (`Link.release_payload`), so a fence waits for one call of the kernel's at most."""

    def pack(self, block_ids: Ids) -> Carried:
        digests = self._blocks.digest(block_ids).tobytes() if self.is_checked else b""
        return Carried(digests, self._blocks.views(block_ids))


class CopyingUnpacker(Unpacker):
    def borrow(self, lend: Lend) -> Loan:
        raise MalformedFrame("blocks are lent over a link that carries them")

    def close(self) -> None:
        """Nothing of the peer's is held."""
