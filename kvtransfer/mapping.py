"""Blocks cross a link by reference: the receiver copies them out of the sender's mapped pool (`shm`)."""

from __future__ import annotations

import numpy as np

from baton.kvtransfer.block_array import BlockArray, Ids
from baton.kvtransfer.carrier import Lease, Loan, Packer, Unpacker, positions_of
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.leases import PeerLeases, ReadLeases
from baton.kvtransfer.memory import map_read_only, require_sealed
from baton.kvtransfer.messages import Lend, Proof

FRAME_CHUNKS = 16
"""Up to 4 MiB, copied under one lock: this bounds how long a fence waits (a fraction of a millisecond)."""


class MappingPacker(Packer):
    """Lends the pool; reads it only to checksum it, while the receiver copies."""

    def __init__(self, blocks: BlockArray, checksum: bool, leases: ReadLeases) -> None:
        self.max_blocks = FRAME_CHUNKS * blocks.chunk_blocks
        self._blocks = blocks
        self.is_checked = checksum
        self._leases = leases

    def pack(self, block_ids: Ids) -> None:
        return None

    def digest(self, block_ids: Ids) -> bytes:
        return self._blocks.digest(block_ids).tobytes()

    def grant(self) -> Lease:
        return self._leases.grant()

    def revoke(self, lease: Lease) -> None:
        self._leases.revoke(lease)


class BorrowingUnpacker(Unpacker):
    """One peer's pool, within this process's reach, and its word on what may be read of it."""

    def __init__(self, blocks: BlockArray, pool: BlockArray, leases_fd: int) -> None:
        """Raises SchemeUnavailable where `leases_fd`, which the caller keeps, is no file of leases."""
        self._leases = PeerLeases(leases_fd)
        self._pool = pool
        self._block_bytes = blocks.block_bytes

    def borrow(self, lend: Lend) -> Loan:
        if self._pool.block_bytes != self._block_bytes:
            raise MalformedFrame(
                f"blocks of {self._pool.block_bytes} bytes are lent, a block has {self._block_bytes} bytes here"
            )
        positions, source = positions_of(lend.positions), positions_of(lend.block_ids)
        if len(positions) != len(source):
            raise MalformedFrame(f"{len(source)} block ids are lent for {len(positions)} positions")
        self._pool.require_ids(source)
        lease = Lease(lend.lease_slot, lend.lease_stamp)
        return Loan(positions, self._pool, source, lambda: self._leases.stands(lease))

    def close(self) -> None:
        self._leases.close()
        del self._pool


class MappingUnpacker(BorrowingUnpacker):
    """One peer's pool, mapped once and read-only."""

    def __init__(self, blocks: BlockArray, proof: Proof, pool_fd: int, leases_fd: int) -> None:
        """proof: the peer's word on the shape of its pool, believed only as far as its file reaches.

        Raises MalformedFrame for an empty shape, SchemeUnavailable where mapping fails. The caller keeps the
        descriptors.
        """
        require_shape(proof)
        size_bytes = proof.num_blocks * proof.block_bytes
        require_sealed(pool_fd, size_bytes)
        self._mapping = map_read_only(pool_fd, size_bytes)
        pool = BlockArray(np.frombuffer(self._mapping, np.uint8), proof.block_bytes)
        super().__init__(blocks, pool, leases_fd)

    def close(self) -> None:
        super().close()
        self._mapping.close()


def require_shape(proof: Proof) -> None:
    """Raises MalformedFrame where the peer's pool has no blocks."""
    if proof.num_blocks < 1 or proof.block_bytes < 1:
        raise MalformedFrame(f"the peer's pool has {proof.num_blocks} blocks of {proof.block_bytes} bytes")
