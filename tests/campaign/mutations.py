"""The fences of the hand-off, each taken away in turn: the campaign has to find the corruption that it prevents.

Not among them, for no schedule could show them missing:
- that blocks which come twice are left alone: while the generation is right and the sender is the same, what
  comes again are the same bytes; leaving them out saves work and keeps the counts true;
- that a lease is looked at before the copy as well as after it: what was copied too late is cleared again, under
  the slot's lock, so the first look only saves the copy;
- that frames are signed and counted (`framing`): the campaign's links repeat and reorder frames on purpose, so
  what a signature would refuse is let in here already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from campaign.node import Node
from campaign.wire import QueuedLink

from baton.kvtransfer import slots
from baton.kvtransfer.block_array import Ids
from baton.kvtransfer.carrier import Lease, Loan, Packer
from baton.kvtransfer.errors import StaleGeneration, TransferAborted, TransferError
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.incoming import Incoming, Sender, Slot
from baton.kvtransfer.landing import Landing
from baton.kvtransfer.leases import PeerLeases
from baton.kvtransfer.link import Outbound
from baton.kvtransfer.rows import Digests
from baton.kvtransfer.session import Outgoing

Mutation = Callable[[pytest.MonkeyPatch], None]


class NoLock:
    """Holds nobody out."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def locked(self) -> bool:
        return False


def without_the_generation_check(patch: pytest.MonkeyPatch) -> None:
    """A frame for a slot's former tenant goes to its present one."""

    def anybody(place: Slot, generation: int) -> Incoming:
        if place.tenant is None:
            raise StaleGeneration(f"slot {place.index} is empty")
        return place.tenant

    patch.setattr(Slot, "tenant_of", anybody)


def without_the_check_after_verifying(patch: pytest.MonkeyPatch) -> None:
    """A frame that was let in is written, whatever happened to its transfer while its bytes were digested."""
    begun: list[Incoming | None] = []
    check, write = Slot.tenant_of, Inbox.write

    def check_once(place: Slot, generation: int) -> Incoming:
        tenant = begun[-1] if begun else None
        if tenant is not None and tenant.slot is place and tenant.generation == generation:
            return tenant
        return check(place, generation)

    def write_on(table: Inbox, slot: int, *arguments: Any) -> None:
        begun.append(table._slots.at(slot).tenant)
        try:
            write(table, slot, *arguments)
        finally:
            begun.pop()

    patch.setattr(Slot, "tenant_of", check_once)
    patch.setattr(Inbox, "write", write_on)


def without_the_slots_lock(patch: pytest.MonkeyPatch) -> None:
    """A fence no longer waits for the copy in progress."""
    patch.setattr(slots, "Slot", lambda index: Slot(index, lock=NoLock()))  # type: ignore[arg-type]


def with_blocks_handed_back_before_the_slot_is_cleared(patch: pytest.MonkeyPatch) -> None:
    end = Inbox._end

    def tell_first(table: Inbox, incoming: Incoming, error: TransferError | None) -> bool:
        if incoming.slot.tenant is not incoming:
            return False
        on_done, incoming.on_done = incoming.on_done, lambda result: None
        on_done(incoming.result(error, table._blocks.block_bytes))
        return end(table, incoming, error)

    patch.setattr(Inbox, "_end", tell_first)


def without_the_lease_check(patch: pytest.MonkeyPatch) -> None:
    """What was read of a mapped pool is believed, though the sender may have fenced the transfer meanwhile."""
    patch.setattr(PeerLeases, "stands", lambda leases, lease: True)


def with_the_lease_looked_at_before_the_copy_only(patch: pytest.MonkeyPatch) -> None:
    def copy(table: Inbox, landing: Landing, block_ids: Ids, loan: Loan) -> Digests:
        if not loan.stands():
            raise TransferAborted("the sender fenced the transfer before its blocks were read")
        return landing.copy(block_ids, loan, table._checksum)

    patch.setattr(Inbox, "_copy_whole_or_clear", copy)


def without_clearing_what_was_read_too_late(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Landing, "clear", lambda landing, block_ids: None)


def with_a_lease_that_stands_for_its_words_next_tenant(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PeerLeases, "stands", lambda leases, lease: int(leases._words[lease.slot]) > 0)


def with_blocks_reused_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """The sender hands its blocks back when the last of them was sent."""
    next_frame = Outgoing.next_frame

    def tell_when_sent(session: Outgoing, packer: Packer, lease: Lease) -> Outbound | None:
        frame = next_frame(session, packer, lease)
        if session._sent_blocks == len(session._wanted):
            on_done, session._on_done = session._on_done, lambda result: None
            on_done(session._result(None))
        return frame

    patch.setattr(Outgoing, "next_frame", tell_when_sent)


def without_the_sessions_lock(patch: pytest.MonkeyPatch) -> None:
    """A sender's fence no longer waits for the frame that is being packed.

    Rarely found: the frame follows the Abort that the fence has sent, so that has to be lost or overtaken.
    """
    make = Outgoing.__init__

    def make_unlocked(session: Outgoing, *arguments: Any) -> None:
        make(session, *arguments)
        session._lock = NoLock()  # type: ignore[assignment]

    patch.setattr(Outgoing, "__init__", make_unlocked)


def without_copying_the_rest_of_a_frame(patch: pytest.MonkeyPatch) -> None:
    """A sender's fence leaves blocks to the socket that it has not taken yet."""
    patch.setattr(QueuedLink, "release_payload", lambda link: None)


def without_the_promised_block_check(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inbox, "_require_free", lambda table, block_ids: None)


def without_the_one_sender_check(patch: pytest.MonkeyPatch) -> None:
    """Whoever shows a ticket may write, though another has taken it up."""

    def bind_anybody(incoming: Incoming, sender: Sender, landing: Landing) -> None:
        incoming.landings.setdefault(sender, landing)

    patch.setattr(Incoming, "bind", bind_anybody)


def without_the_checksum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Incoming, "require_equal", lambda incoming, *digests: None)


def without_the_epoch_check(patch: pytest.MonkeyPatch) -> None:
    """A ticket of a receiver's former start is good for whatever has the same slot and generation now."""
    patch.setattr(Node, "checks_epochs", False)


QUICKLY_FOUND: tuple[Mutation, ...] = (
    without_the_generation_check,
    without_the_check_after_verifying,
    without_the_slots_lock,
    with_blocks_handed_back_before_the_slot_is_cleared,
    without_the_lease_check,
    with_the_lease_looked_at_before_the_copy_only,
    without_clearing_what_was_read_too_late,
    with_a_lease_that_stands_for_its_words_next_tenant,
    with_blocks_reused_before_the_acknowledgement,
    without_copying_the_rest_of_a_frame,
    without_the_promised_block_check,
    without_the_one_sender_check,
    without_the_checksum,
    without_the_epoch_check,
)
