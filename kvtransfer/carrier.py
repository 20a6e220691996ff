"""How blocks cross a link: packed on the sender's side, unpacked on the receiver's.

Two ways exist: `copying` carries the blocks' bytes in the frames, `mapping` lends the sender's pool to the
receiver, which copies them from there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from baton.kvtransfer.block_array import BlockArray, Blocks, Ids
from baton.kvtransfer.errors import MalformedFrame
from baton.kvtransfer.link import Pieces
from baton.kvtransfer.messages import Lend, Push
from baton.kvtransfer.rows import Digests

NO_PAYLOAD: Pieces = ()


class Lease(NamedTuple):
    """Leave to read the sender's pool on behalf of one session; all zero where nobody but the sender reads."""

    slot: int = 0
    stamp: int = 0


class Carried(NamedTuple):
    """Blocks as bytes. digests: uint64, one a chunk; empty where the agents do not check."""

    digests: bytes
    payload: Pieces


class RowPacker(ABC):
    """Makes the blocks of a frame; used by one thread at a time."""

    max_blocks: int
    """Upper bound of a frame."""

    @abstractmethod
    def pack(self, block_ids: Ids) -> Carried | None:
        """At most `max_blocks` blocks of the local pool; None where they are lent and nothing needs packing."""


class Packer(RowPacker):
    """The sending half of a link, for blocks that cross as they lie."""

    is_checked: bool
    """Whether digests are made."""

    @abstractmethod
    def digest(self, block_ids: Ids) -> bytes:
        """Of blocks that were lent: uint64, one a chunk."""

    @abstractmethod
    def grant(self) -> Lease:
        """A lease for a new session. Raises TooManyTransfers."""

    @abstractmethod
    def revoke(self, lease: Lease) -> None:
        """After this returns, what a peer reads under `lease` it throws away. Revoking twice does nothing."""


class Arrival(NamedTuple):
    """Blocks that came as bytes: rows[i], in memory of this process alone, is the block at positions[i]."""

    positions: Ids
    rows: Blocks
    digests: Digests


class Loan(NamedTuple):
    """Blocks to be copied from a mapped pool: block source[i] of it is the one at positions[i].

    stands: asked after copying; where it is false, what was copied may be another request's.
    """

    positions: Ids
    pool: BlockArray
    source: Ids
    stands: Callable[[], bool]


class Unpacker(ABC):
    """The receiving half of one link; used on the I/O thread alone."""

    def unpack(self, push: Push, payload: memoryview) -> Arrival:
        """The rows where they lie in the frame. Raises MalformedFrame where its parts do not fit together."""
        positions = positions_of(push.positions)
        row_bytes, rest = divmod(len(payload), len(positions))
        if rest or not row_bytes:
            raise MalformedFrame(f"{len(payload)} bytes for {len(positions)} blocks")
        rows = np.frombuffer(payload, np.dtype((np.void, row_bytes)))
        return Arrival(positions, rows, digests_of(push.digests))

    @abstractmethod
    def borrow(self, lend: Lend) -> Loan:
        """Raises MalformedFrame where its parts do not fit together, or no pool of the peer's is mapped."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of the peer's memory."""


def positions_of(packed: bytes) -> Ids:
    """Raises MalformedFrame for what is no list of int32."""
    if len(packed) % 4 or not packed:
        raise MalformedFrame(f"positions of {len(packed)} bytes, no positive multiple of 4")
    return np.frombuffer(packed, np.int32).astype(np.int64)


def digests_of(packed: bytes) -> Digests:
    """Raises MalformedFrame for what is no list of uint64."""
    if len(packed) % 8:
        raise MalformedFrame(f"digests of {len(packed)} bytes, no multiple of 8")
    return np.frombuffer(packed, np.uint64)
