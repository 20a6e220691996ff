"""One promise of the receive table, and the place where it lies."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baton.kvtransfer.base import OnDone, TransferResult, TransferState
from baton.kvtransfer.block_array import Ids
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    ChecksumMismatch,
    StaleGeneration,
    TransferError,
)
from baton.kvtransfer.landing import Landing
from baton.kvtransfer.rows import Digests


class Sender(Protocol):
    """The far end of a transfer, to whom its end is told."""

    def tell_ended(self, generation: int, error: TransferError | None) -> None: ...


@dataclass(slots=True, eq=False)
class Slot:
    """A place in the receive table; `lock` is held while its tenant is written or ended."""

    index: int
    tenant: Incoming | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tenant_of(self, generation: int) -> Incoming:
        """Whom a write of `generation` is meant for; under the lock it stays. Raises StaleGeneration."""
        tenant = self.tenant
        if tenant is None or tenant.generation != generation:
            raise StaleGeneration(f"slot {self.index}: generation {generation} is fenced off")
        return tenant


@dataclass(slots=True, eq=False)
class Incoming:
    """One promise. positions: int64 [n], ascending; block_ids: int64 [n], beside them; landed: bool [n, parts],
    of each block the parts that are in (see `landing`). landings: of each sender its own parts. unconfirmed: by
    positions, blocks that were copied and whose digests have not come. Times are seconds on the monotonic clock."""

    transfer_id: bytes
    generation: int
    slot: Slot
    positions: Ids
    block_ids: Ids
    landed: NDArray[np.bool_]
    on_done: OnDone
    expires_at_s: float
    opened_at_s: float
    first_byte_at_s: float = 0.0
    last_byte_at_s: float = 0.0
    landings: dict[Sender, Landing] = field(default_factory=dict)
    unconfirmed: dict[bytes, tuple[Ids, Digests]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return int(np.count_nonzero(self.landed)) == self.landed.size

    def bind(self, sender: Sender, landing: Landing) -> None:
        """Gives a sender its parts; the same again changes nothing. Raises BadTicket where another sender has
        one of them: the ticket was replayed."""
        for other, taken in self.landings.items():
            if other is not sender and taken.overlaps(landing):
                raise BadTicket(f"transfer {self.transfer_id.hex()}: the ticket is used by another sender")
        self.landings.setdefault(sender, landing)

    def landing_of(self, sender: Sender) -> Landing:
        """Raises BadTicket for a sender that was not bound."""
        landing = self.landings.get(sender)
        if landing is None:
            raise BadTicket(f"transfer {self.transfer_id.hex()}: written by a sender it is not bound to")
        return landing

    def index_of(self, positions: Ids) -> Ids:
        """Raises BlockOutOfRange naming the first position that was never asked for."""
        index = self.positions.searchsorted(positions)
        found = self.positions.take(index, mode="clip") == positions
        if np.count_nonzero(found) < len(found):
            raise BlockOutOfRange(
                f"transfer {self.transfer_id.hex()}: position {positions[~found][0]} is not wanted here"
            )
        return index

    def has_landed(self, index: Ids, landing: Landing) -> NDArray[np.bool_]:
        """bool [len(index)]: which of these blocks this sender's parts are in of."""
        return self.landed[:, landing.parts.start].take(index)

    def begin(self) -> None:
        """A write starts."""
        self.first_byte_at_s = self.first_byte_at_s or time.monotonic()

    def land(self, index: Ids, landing: Landing) -> None:
        """Written and verified."""
        self.landed[index, landing.parts.start : landing.parts.stop] = True
        self.last_byte_at_s = time.monotonic()

    def require_equal(self, index: Ids, said: Digests, found: Digests) -> None:
        """Raises ChecksumMismatch where the sender's digests of these blocks are not the ones found here."""
        if not len(said):
            raise self.unchecked(index)
        if not np.array_equal(said, found):
            raise ChecksumMismatch(f"{self._name(index)} are not what the sender had")

    def unchecked(self, index: Ids) -> ChecksumMismatch:
        return ChecksumMismatch(f"{self._name(index)} came without checksums")

    def _name(self, index: Ids) -> str:
        first, last = self.positions[index[0]], self.positions[index[-1]]
        return f"transfer {self.transfer_id.hex()}: positions {first} to {last}"

    def result(self, error: TransferError | None, block_bytes: int) -> TransferResult:
        parts = int(np.count_nonzero(self.landed))
        return TransferResult(
            self.transfer_id,
            TransferState.DONE if error is None else TransferState.FAILED,
            int(np.count_nonzero(self.landed.all(axis=1))),
            parts * block_bytes // self.landed.shape[1],
            error,
            self.opened_at_s,
            self.first_byte_at_s,
            self.last_byte_at_s,
            time.monotonic(),
        )


def require_sane(positions: Ids, block_ids: Ids) -> None:
    """Raises BlockOutOfRange for what cannot be promised: uneven lists, a position that is none, repetitions."""
    if len(positions) != len(block_ids) or not len(positions):
        raise BlockOutOfRange(f"{len(positions)} positions for {len(block_ids)} blocks")
    if int(positions.min()) < 0 or int(positions.max()) > np.iinfo(np.int32).max:
        raise BlockOutOfRange(f"positions {positions.min()} to {positions.max()} are outside 0 to 2^31 - 1")
    for name, ids in (("position", positions), ("block id", block_ids)):
        ascending = np.sort(ids)
        is_repeated = ascending[1:] == ascending[:-1]
        if is_repeated.any():
            raise BlockOutOfRange(f"{name} {ascending[1:][is_repeated][0]} is listed twice")
