"""Blocks cross a link by reference: the receiver copies them out of the sender's mapped pool (`shm`)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from baton.kvtransfer.block_array import BlockArray, Blocks, Ids
from baton.kvtransfer.carrier import NO_PAYLOAD, Lease, Packed, Packer, Unpacker
from baton.kvtransfer.copying import carried_rows
from baton.kvtransfer.errors import MalformedFrame, TransferAborted
from baton.kvtransfer.leases import PeerLeases, ReadLeases
from baton.kvtransfer.memory import map_read_only, require_sealed
from baton.kvtransfer.messages import Proof, Push


class MappingPacker(Packer):
    """Sends block ids; reads the pool only to checksum it, while the receiver copies the frames before."""

    max_chunks = 16

    def __init__(self, blocks: BlockArray, checksum: bool, leases: ReadLeases) -> None:
        super().__init__(blocks, checksum)
        self._leases = leases
        self._staging = blocks.staging()

    def pack(self, block_ids: Ids) -> Packed:
        starts = range(0, len(block_ids), self.chunk_blocks)
        chunks = (self._blocks.look(block_ids[at : at + self.chunk_blocks], self._staging) for at in starts)
        return Packed(self._digests(chunks), block_ids.astype(np.int32).tobytes(), NO_PAYLOAD)

    def grant(self) -> Lease:
        return self._leases.grant()

    def revoke(self, lease: Lease) -> None:
        self._leases.revoke(lease)


class MappingUnpacker(Unpacker):
    """One peer's pool, mapped once and read-only."""

    def __init__(self, blocks: BlockArray, proof: Proof, pool_fd: int, leases_fd: int) -> None:
        """proof: the peer's word on the shape of its pool, believed only as far as its file reaches.

        Raises MalformedFrame for an empty shape, SchemeUnavailable where mapping fails. The caller keeps the
        descriptors.
        """
        super().__init__(blocks)
        if proof.num_blocks < 1 or proof.block_bytes < 1:
            raise MalformedFrame(
                f"the peer's pool has {proof.num_blocks} blocks of {proof.block_bytes} bytes"
            )
        size_bytes = proof.num_blocks * proof.block_bytes
        require_sealed(pool_fd, size_bytes)
        self._leases = PeerLeases(leases_fd)
        self._mapping = map_read_only(pool_fd, size_bytes)
        self._pool = BlockArray(np.frombuffer(self._mapping, np.uint8), proof.block_bytes)
        self._staging = blocks.staging()

    def _rows(self, push: Push, num_blocks: int, payload: memoryview) -> Iterator[Blocks]:
        if payload:  # rows that the sender had to convert
            yield from carried_rows(num_blocks, payload)
            return
        if self._pool.block_bytes != self._staging.dtype.itemsize:
            raise MalformedFrame(
                f"blocks of {self._pool.block_bytes} bytes by reference, "
                f"a block has {self._staging.dtype.itemsize} bytes here"
            )
        if len(push.source) != 4 * num_blocks:
            raise MalformedFrame(f"{len(push.source)} bytes of source block ids for {num_blocks} positions")
        source = np.frombuffer(push.source, np.int32).astype(np.int64)
        self._pool.require_ids(source)
        lease = Lease(push.lease_slot, push.lease_stamp)
        for start in range(0, num_blocks, self._chunk_blocks):
            rows = self._pool.gather(source[start : start + self._chunk_blocks], self._staging)
            if not self._leases.stands(lease):  # after the copy: see `leases`
                raise TransferAborted("the sender fenced the transfer while its blocks were being read")
            yield rows

    def close(self) -> None:
        self._leases.close()
        del self._pool
        self._mapping.close()
