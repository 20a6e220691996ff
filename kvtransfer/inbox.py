"""The receive table of one worker: the one place where bytes of a peer get into its pool.

Stations of a transfer:  expect -> attach (a sender took the ticket up) -> write, write, ... -> ended
and from each of the first three `fence`, `fail`, `lose` or `expire` lead to the end as well.

A promise lies in a slot and carries a generation that is never used again. Slots are reused; a write that
was meant for a slot's former tenant carries the former generation and is refused, however late it comes.
Writing happens under the slot's lock, and so does ending: once an end (a fence, say) has returned, no byte
of that transfer can land. A transfer is done only when all its blocks are verified: what came as bytes is
checksummed in a buffer of this process's own before it is written; what was lent by the sender is checksummed on
its way into blocks that are this transfer's alone, counts once the sender's checksums say the same, and is cleared
where they do not, or where the loan was taken back meanwhile.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from baton.kvtransfer.base import TRANSFER_ID_BYTES, BlockIds, OnDone
from baton.kvtransfer.block_array import BlockArray, Blocks, Ids, as_ids
from baton.kvtransfer.carrier import Arrival, Loan
from baton.kvtransfer.errors import (
    BlockOutOfRange,
    ChecksumMismatch,
    MalformedFrame,
    StaleGeneration,
    TransferAborted,
    TransferError,
    TransferTimeout,
)
from baton.kvtransfer.incoming import Incoming, Sender, require_sane
from baton.kvtransfer.landing import Landing, Landings
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.rows import Digests
from baton.kvtransfer.slots import Slots
from baton.kvtransfer.stats import Tally

ALL_HEADS = range(0)
"""What a sender of whole blocks attaches with."""


class Inbox:
    """All methods may be called from any thread."""

    def __init__(
        self,
        blocks: BlockArray,
        checksum: bool,
        max_open: int,
        set_alarm: Callable[[float], None],
        layout: KVLayout | None = None,
    ) -> None:
        """max_open: bound on transfers expected at once. set_alarm: asks for `expire` at a monotonic time.
        layout: of the pool, where senders may bring parts of blocks."""
        self.refused: Counter[str] = Counter()
        self.duplicate_blocks = 0
        self._blocks = blocks
        self._checksum = checksum
        self._landings = Landings(blocks, layout)
        self._set_alarm = set_alarm
        self._lock = threading.Lock()
        self._slots = Slots(max_open)
        self._open: dict[bytes, Incoming] = {}
        self._promised = np.zeros(len(blocks), np.bool_)
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._open)

    def expect(self, positions: BlockIds, block_ids: BlockIds, ttl_s: float, on_done: OnDone) -> Incoming:
        """Promises block_ids[i] to block positions[i] of a request that starts to arrive within `ttl_s`.

        Raises BlockOutOfRange (a block that is not there, twice there, or promised already),
        TooManyTransfers, and TransferAborted after `close`.
        """
        self._require_open()
        wanted, targets = as_ids(positions), as_ids(block_ids)
        require_sane(wanted, targets)
        self._blocks.require_ids(targets)
        order = np.argsort(wanted)
        now_s = time.monotonic()
        with self._lock:
            self._require_open()  # again, for `close` may have come between
            self._require_free(targets)
            slot, generation = self._slots.take()
            incoming = Incoming(
                transfer_id=secrets.token_bytes(TRANSFER_ID_BYTES),
                generation=generation,
                slot=slot,
                positions=wanted[order],
                block_ids=targets[order],
                landed=np.zeros((len(wanted), self._landings.parts), np.bool_),
                on_done=on_done,
                expires_at_s=now_s + ttl_s,
                opened_at_s=now_s,
            )
            self._open[incoming.transfer_id] = incoming
            self._promised[targets] = True
            slot.tenant = incoming
        self._set_alarm(incoming.expires_at_s)
        return incoming

    def attach(self, slot: int, generation: int, sender: Sender, heads: range = ALL_HEADS) -> None:
        """Binds a transfer, or these KV heads of it, to the one sender that may write them. Raises
        StaleGeneration, and BadTicket where another one came first or the heads are not this pool's."""
        place = self._slots.at(slot)
        with place.lock:
            place.tenant_of(generation).bind(sender, self._landings.of(heads))

    def write(self, slot: int, generation: int, arrival: Arrival, sender: Sender, tally: Tally) -> None:
        """Verifies blocks that came as bytes, writes them where they were promised, and counts them in `tally`.

        Blocks that have landed before are counted as duplicates and left alone. Raises StaleGeneration,
        BadTicket (not attached), BlockOutOfRange (a position not wanted), MalformedFrame (rows of a wrong size)
        and ChecksumMismatch; then nothing of the frame is written.
        """
        place = self._slots.at(slot)
        with place.lock:
            incoming = place.tenant_of(generation)
            landing = incoming.landing_of(sender)
        index = incoming.index_of(arrival.positions)
        landing.require_fitting(arrival.rows.dtype.itemsize)
        if self._checksum:
            incoming.require_equal(index, arrival.digests, landing.digest(arrival.rows))
        with place.lock:
            place.tenant_of(generation)
            index, rows = self._leave_out_landed(incoming, landing, index, arrival.rows)
            incoming.begin()
            landing.scatter(incoming.block_ids[index], rows)
            incoming.land(index, landing)
        self._count(incoming, index, landing, tally)

    def copy(
        self, slot: int, generation: int, loan: Loan, is_digested: bool, sender: Sender, tally: Tally
    ) -> None:
        """Copies lent blocks to where they were promised; they count once `confirm` has seen their digests, or
        at once where nobody checks. Raises as `write` does, and TransferAborted where the sender took the loan
        back meanwhile."""
        place = self._slots.at(slot)
        with place.lock:
            incoming = place.tenant_of(generation)
            landing = incoming.landing_of(sender)
            index = incoming.index_of(loan.positions)
            landing.require_fitting(loan.pool.block_bytes)
            if self._checksum and not is_digested:
                raise incoming.unchecked(index)
            if self._is_repeated(incoming, landing, index):
                return
            incoming.begin()
            digests = self._copy_whole_or_clear(landing, incoming.block_ids[index], loan)
            if self._checksum:
                incoming.unconfirmed[loan.positions.tobytes()] = (index, digests)
                return
            incoming.land(index, landing)
        self._count(incoming, index, landing, tally)

    def confirm(
        self, slot: int, generation: int, positions: Ids, digests: Digests, sender: Sender, tally: Tally
    ) -> None:
        """The sender's digests of lent blocks. Raises as `write` does, MalformedFrame where none were lent."""
        place = self._slots.at(slot)
        with place.lock:
            incoming = place.tenant_of(generation)
            landing = incoming.landing_of(sender)
            index, copied = incoming.unconfirmed.pop(positions.tobytes(), (None, None))
            if index is None or copied is None:
                if not self._checksum or self._is_repeated(incoming, landing, incoming.index_of(positions)):
                    return
                raise MalformedFrame("digests of blocks that were not lent")
            try:
                incoming.require_equal(index, digests, copied)
            except ChecksumMismatch:
                landing.clear(incoming.block_ids[index])
                raise
            incoming.land(index, landing)
        self._count(incoming, index, landing, tally)

    def fail(self, slot: int, generation: int, error: TransferError, sender: Sender) -> bool:
        """Ends a transfer with `error`; False where it is gone already, or not this sender's."""
        try:
            incoming = self._slots.at(slot).tenant_of(generation)
        except StaleGeneration:
            return False
        return sender in incoming.landings and self._end(incoming, error)

    def fence(self, transfer_id: bytes, reason: str) -> None:
        """Ends a transfer with TransferAborted; a copy in progress is waited for. After the return nothing of
        it lands, and unless it had ended before, `on_done` has been called."""
        incoming = self._open.get(transfer_id)
        if incoming is not None:
            self._end(incoming, TransferAborted(f"transfer {transfer_id.hex()}: {reason}"))

    def lose(self, sender: Sender, error: TransferError) -> None:
        """Ends all transfers of a sender that is gone."""
        for incoming in self._all_open():
            if sender in incoming.landings:
                self._end(incoming, error)

    def expire(self, now_s: float) -> float | None:
        """Ends what is overdue; the earliest deadline left."""
        deadlines_s = []
        for incoming in self._all_open():
            if incoming.expires_at_s > now_s:
                deadlines_s.append(incoming.expires_at_s)
                continue
            waited_s = now_s - incoming.opened_at_s
            name = incoming.transfer_id.hex()
            self._end(
                incoming, TransferTimeout(f"transfer {name}: blocks are missing after {waited_s:.3f} s")
            )
        return min(deadlines_s, default=None)

    def close(self, reason: str) -> None:
        with self._lock:
            self._is_closed = True
        for incoming in self._all_open():
            self.fence(incoming.transfer_id, reason)

    # --- within --------------------------------------------------------------------------------------------

    def _copy_whole_or_clear(self, landing: Landing, block_ids: Ids, loan: Loan) -> Digests:
        """The loan is looked at before, so that nothing is copied too late, and after: see `leases`."""
        if loan.stands():
            digests = landing.copy(block_ids, loan, self._checksum)
            if loan.stands():
                return digests
            landing.clear(block_ids)
        raise TransferAborted("the sender fenced the transfer before its blocks were read")

    def _leave_out_landed(
        self, incoming: Incoming, landing: Landing, index: Ids, rows: Blocks
    ) -> tuple[Ids, Blocks]:
        has_landed = incoming.has_landed(index, landing)
        repeated = int(np.count_nonzero(has_landed))
        if not repeated:
            return index, rows
        self.duplicate_blocks += repeated
        return index[~has_landed], rows[~has_landed]

    def _is_repeated(self, incoming: Incoming, landing: Landing, index: Ids) -> bool:
        """Whether all these blocks have landed before. Raises MalformedFrame where only some have."""
        repeated = int(np.count_nonzero(incoming.has_landed(index, landing)))
        if 0 < repeated < len(index):
            raise MalformedFrame(f"{repeated} of {len(index)} blocks are lent again")
        self.duplicate_blocks += repeated
        return repeated > 0

    def _count(self, incoming: Incoming, index: Ids, landing: Landing, tally: Tally) -> None:
        tally.add(len(index), len(index) * landing.row_bytes)
        if incoming.is_complete:
            self._end(incoming, None)

    def _end(self, incoming: Incoming, error: TransferError | None) -> bool:
        """The only way out of the table; False where somebody else was first. Takes a slot's lock, then the
        table's; nothing takes them the other way round."""
        with incoming.slot.lock:
            if incoming.slot.tenant is not incoming:
                return False
            incoming.slot.tenant = None
            with self._lock:
                del self._open[incoming.transfer_id]
                self._promised[incoming.block_ids] = False
                self._slots.give_back(incoming.slot)
        for sender in list(incoming.landings):
            sender.tell_ended(incoming.generation, error)
        incoming.on_done(incoming.result(error, self._blocks.block_bytes))
        return True

    def _all_open(self) -> list[Incoming]:
        with self._lock:
            return list(self._open.values())

    def _require_open(self) -> None:
        if self._is_closed:
            raise TransferAborted("this agent is closed")

    def _require_free(self, block_ids: Ids) -> None:
        taken = self._promised[block_ids]
        if taken.any():
            raise BlockOutOfRange(f"block {block_ids[taken][0]} is promised to another transfer")
