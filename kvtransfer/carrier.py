"""How blocks cross a link: packed on the sender's side, unpacked on the receiver's.

Two ways exist: `copying` puts the blocks' bytes into the frames, `mapping` puts their ids there and the
receiver reads them from the sender's mapped pool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from baton.kvtransfer.block_array import BlockArray, Blocks, Ids, chunk_blocks
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.messages import Push

NO_PAYLOAD = memoryview(b"")


class Lease(NamedTuple):
    """Leave to read the sender's pool on behalf of one session; all zero where nobody but the sender reads."""

    slot: int = 0
    stamp: int = 0


class Packed(NamedTuple):
    """The carrier's fields of a `Push`, and the payload behind it."""

    digests: bytes
    source: bytes
    payload: memoryview


class RowPacker(ABC):
    """Makes the blocks of a frame; used by one thread at a time."""

    max_chunks: int
    """Upper bound of a frame, in chunks."""

    def __init__(self, row_bytes: int, checksum: bool) -> None:
        """row_bytes: what crosses for each block."""
        self.chunk_blocks = chunk_blocks(row_bytes)
        self._checksum = checksum

    @abstractmethod
    def pack(self, block_ids: Ids) -> Packed:
        """At most `max_chunks` chunks of the local pool."""

    def _digests(self, chunks: Iterator[Blocks]) -> bytes:
        if not self._checksum:
            return b""
        return np.fromiter((xxh3_64_intdigest(chunk.data) for chunk in chunks), np.uint64).tobytes()


class Packer(RowPacker):
    """The sending half of a link, for blocks that cross as they lie."""

    def __init__(self, blocks: BlockArray, checksum: bool) -> None:
        super().__init__(blocks.block_bytes, checksum)
        self._blocks = blocks

    @abstractmethod
    def grant(self) -> Lease:
        """A lease for a new session. Raises TooManyTransfers."""

    @abstractmethod
    def revoke(self, lease: Lease) -> None:
        """After this returns, what a peer reads under `lease` it throws away. Revoking twice does nothing."""


class Chunk(NamedTuple):
    """The next blocks of a frame in this process's own copy, and what the sender says their XXH3-64 is."""

    rows: Blocks
    digest: int | None


class Arrival(NamedTuple):
    """A frame on the receiving side: the chunks, one after the other, are the blocks at `positions`. A chunk
    holds until the next is asked for."""

    positions: Ids
    chunks: Iterator[Chunk]


class Unpacker(ABC):
    """The receiving half of one link; used on the I/O thread alone."""

    def __init__(self, blocks: BlockArray) -> None:
        """blocks: the local pool, for its block size."""
        self._chunk_blocks = chunk_blocks(blocks.block_bytes)

    def unpack(self, push: Push, payload: memoryview) -> Arrival:
        """Raises MalformedFrame, here or on the way, where the parts of a frame do not fit together."""
        if len(push.positions) % 4 or not push.positions:
            raise MalformedFrame(f"positions of {len(push.positions)} bytes, no positive multiple of 4")
        positions = np.frombuffer(push.positions, np.int32).astype(np.int64)
        carried = chunk_blocks(len(payload) // len(positions) or 1)
        num_chunks = -(-len(positions) // (carried if payload else self._chunk_blocks))
        if len(push.digests) not in (0, 8 * num_chunks):
            raise MalformedFrame(f"digests of {len(push.digests)} bytes for {num_chunks} chunks")
        digests: list[int | None] = [*np.frombuffer(push.digests, np.uint64).tolist()] or [None] * num_chunks
        return Arrival(positions, map(Chunk, self._rows(push, len(positions), payload), digests))

    @abstractmethod
    def _rows(self, push: Push, num_blocks: int, payload: memoryview) -> Iterator[Blocks]:
        """The blocks of each chunk in turn."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the peer's memory."""
