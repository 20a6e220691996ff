"""The sending half of one transfer, the same on every scheme.

Blocks wait here as ids until the channel can take them: the pool is read only while a frame is packed, under
the session's lock, and never once the session has ended.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from baton.kvtransfer.base import BlockIds, OnDone, SendSession, Ticket, TransferResult, TransferState
from baton.kvtransfer.block_array import BlockArray, Ids, as_ids
from baton.kvtransfer.carrier import NO_PAYLOAD, Lease, Packer
from baton.kvtransfer.converting import ConvertingPacker
from baton.kvtransfer.errors import BlockOutOfRange, TransferAborted, TransferError
from baton.kvtransfer.link import Outbound
from baton.kvtransfer.messages import Digests, Lend, Push

LOANS_AHEAD = 2
"""Loans that are out before the first one's digests leave, so that the receiver never waits for the next."""


class Carriage(Protocol):
    """The channel under a session, as the session sees it."""

    scheme: str

    def offer(self, session: Outgoing) -> None:
        """The session has blocks to send."""

    def drop(self, session: Outgoing, error: TransferError | None) -> None:
        """The session has ended: nobody may read its blocks after the return. The receiver is told `error`
        where it is the sender that gave up."""


class Outgoing(SendSession):
    def __init__(
        self,
        ticket: Ticket,
        blocks: BlockArray,
        on_done: OnDone,
        on_ended: Callable[[Outgoing], None],
        converter: ConvertingPacker | None = None,
    ) -> None:
        """on_ended: the agent's bookkeeping, called just before `on_done`. converter: None where the receiver's
        layout is the local one."""
        self.ticket = ticket
        self.heads = range(0) if converter is None else converter.heads
        self.row_bytes = blocks.block_bytes if converter is None else converter.row_bytes
        self.expires_at_s = time.monotonic() + ticket.ttl_s
        self._blocks = blocks
        self._converter = converter
        self._on_done = on_done
        self._on_ended = on_ended
        self._wanted: Ids = np.frombuffer(ticket.positions, np.int32).astype(np.int64)
        self._is_pushed = np.zeros(len(self._wanted), np.bool_)
        self._ending = threading.Lock()
        self._lock = threading.Lock()
        self._carriage: Carriage | None = None
        self._has_ended = False
        self._pending: deque[tuple[Ids, Ids]] = deque()
        self._undigested: deque[tuple[bytes, Ids]] = deque()
        self._sent_blocks = 0
        self._opened_at_s = time.monotonic()
        self._first_byte_at_s = self._last_byte_at_s = 0.0

    @property
    def is_open(self) -> bool:
        return not self._has_ended

    # --- the caller's side ---------------------------------------------------------------------------------

    def push(self, positions: BlockIds, block_ids: BlockIds) -> None:
        given, sources = as_ids(positions), as_ids(block_ids)
        if len(given) != len(sources):
            raise BlockOutOfRange(f"{len(given)} positions for {len(sources)} blocks")
        self._blocks.require_ids(sources)
        self._blocks.settle()
        with self._lock:
            if self._has_ended or not self._enqueue(given, sources):
                return
            carriage = self._carriage
        if carriage is not None:
            carriage.offer(self)

    def _enqueue(self, positions: Ids, block_ids: Ids) -> bool:
        """Keeps what the ticket wants and has not been pushed; False where nothing is left."""
        if not len(self._wanted):  # the receiver caches everything, and the end is on its way
            return False
        if self._converter is not None:
            self._converter.add(positions, block_ids)
            positions = block_ids = self._wanted[~self._is_pushed & self._converter.has_all(self._wanted)]
        index = self._wanted.searchsorted(positions)
        is_new = self._wanted.take(index, mode="clip") == positions
        is_new &= ~self._is_pushed.take(index, mode="clip")
        new_blocks = np.count_nonzero(is_new)
        if not new_blocks:
            return False
        if new_blocks < len(positions):
            index, positions, block_ids = index[is_new], positions[is_new], block_ids[is_new]
        self._is_pushed[index] = True
        self._pending.append((positions, block_ids))
        return True

    def fence(self, reason: str) -> None:
        self.end(TransferAborted(f"transfer {self.ticket.transfer_id.hex()}: {reason}"), tell_receiver=True)

    # --- the agent's side ----------------------------------------------------------------------------------

    def bind(self, carriage: Carriage) -> None:
        """From now on the session has a channel to its receiver."""
        with self._lock:
            if self._has_ended:
                has_blocks = False
            else:
                self._carriage = carriage
                has_blocks = bool(self._pending)
        if has_blocks:
            carriage.offer(self)

    def next_frame(self, packer: Packer, lease: Lease) -> Outbound | None:
        """Packs, or lends, the next blocks; None where there are none. A loan's digests are computed only once it
        has left, for the receiver copies meanwhile."""
        with self._lock:
            if self._has_ended:
                return None
            if self._undigested and (not self._pending or len(self._undigested) >= LOANS_AHEAD):
                return self._next_digests(packer)
            if not self._pending:
                return None
            rows = self._converter or packer
            positions, block_ids = self._cut(rows.max_blocks)
            started_at_s = time.monotonic()
            carried = rows.pack(block_ids)
            self._first_byte_at_s = self._first_byte_at_s or started_at_s
            self._last_byte_at_s = time.monotonic()
            self._sent_blocks += len(positions)
            packed_positions = positions.astype(np.int32).tobytes()
            if carried is None:
                return self._lend(packed_positions, block_ids, lease, packer.is_checked)
        return Outbound(
            Push(
                slot=self.ticket.slot,
                generation=self.ticket.generation,
                positions=packed_positions,
                digests=carried.digests,
            ),
            carried.payload,
        )

    def _lend(self, positions: bytes, block_ids: Ids, lease: Lease, is_digested: bool) -> Outbound:
        if is_digested:
            self._undigested.append((positions, block_ids))
        lend = Lend(
            slot=self.ticket.slot,
            generation=self.ticket.generation,
            positions=positions,
            block_ids=block_ids.astype(np.int32).tobytes(),
            lease_slot=lease.slot,
            lease_stamp=lease.stamp,
            is_digested=is_digested,
        )
        return Outbound(lend, NO_PAYLOAD)

    def _next_digests(self, packer: Packer) -> Outbound:
        positions, block_ids = self._undigested.popleft()
        digests = Digests(
            slot=self.ticket.slot,
            generation=self.ticket.generation,
            positions=positions,
            digests=packer.digest(block_ids),
        )
        self._last_byte_at_s = time.monotonic()
        return Outbound(digests, NO_PAYLOAD)

    def _cut(self, max_blocks: int) -> tuple[Ids, Ids]:
        positions, block_ids = self._pending.popleft()
        if len(positions) > max_blocks:
            self._pending.appendleft((positions[max_blocks:], block_ids[max_blocks:]))
        return positions[:max_blocks], block_ids[:max_blocks]

    def end(self, error: TransferError | None, tell_receiver: bool = False) -> None:
        """Ends the session once; later calls do nothing. Waits for a frame that is being packed, and for another
        thread that is just ending the session: on return nobody reads the blocks, whoever was first."""
        with self._ending:
            with self._lock:
                if self._has_ended:
                    return
                self._has_ended = True
                self._pending.clear()
                self._undigested.clear()
                carriage = self._carriage
            if carriage is not None:
                carriage.drop(self, error if tell_receiver else None)
        self._on_ended(self)
        self._on_done(self._result(error))

    def _result(self, error: TransferError | None) -> TransferResult:
        return TransferResult(
            self.ticket.transfer_id,
            TransferState.DONE if error is None else TransferState.FAILED,
            self._sent_blocks,
            self._sent_blocks * self.row_bytes,
            error,
            self._opened_at_s,
            self._first_byte_at_s,
            self._last_byte_at_s,
            time.monotonic(),
            "" if self._carriage is None else self._carriage.scheme,
        )
