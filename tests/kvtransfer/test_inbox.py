"""The receive table: only what was promised lands, and only in time."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from receive_table import BLOCK_BYTES, FakeSender, Table, make_arrival
from transfer_ends import stamp

from baton.kvtransfer.base import TransferState
from baton.kvtransfer.block_array import BlockArray, Blocks
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    ChecksumMismatch,
    PeerLost,
    StaleGeneration,
    TransferTimeout,
)
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.stats import Tally


def test_blocks_land_by_position_and_the_transfer_ends_once(table: Table) -> None:
    incoming, outcome = table.expect([5, 3], [0, 7])
    assert table.write(incoming, [3]) == 1
    assert not outcome.is_called
    assert table.write(incoming, [5]) == 1
    assert outcome.wait().state is TransferState.DONE
    assert table.block(7) == stamp(1, 3, BLOCK_BYTES)
    assert table.block(0) == stamp(1, 5, BLOCK_BYTES)
    assert table.sender.told == [(incoming.generation, None)]


def test_a_write_for_a_slots_former_tenant_is_refused(table: Table) -> None:
    former, _ = table.expect([0, 1], [4, 5])
    table.inbox.fence(former.transfer_id, "fenced")
    tenant, outcome = table.expect([0, 1], [4, 5])
    assert tenant.slot is former.slot
    with pytest.raises(StaleGeneration, match=f"generation {former.generation}"):
        table.write(former, [0, 1], owner=9)
    assert not outcome.is_called
    assert table.block(4) == bytes(BLOCK_BYTES)
    assert table.write(tenant, [0, 1]) == 2


def test_a_write_after_the_end_is_refused(table: Table) -> None:
    incoming, _ = table.expect([0], [4])
    table.write(incoming, [0])
    with pytest.raises(StaleGeneration):
        table.write(incoming, [0], owner=9)
    assert table.block(4) == stamp(1, 0, BLOCK_BYTES)


@pytest.mark.parametrize("slot", [-1, 0, 1, 10**6])
def test_a_slot_that_never_was_is_refused(table: Table, slot: int) -> None:
    with pytest.raises(StaleGeneration, match=f"slot {slot}"):
        table.inbox.write(slot, 1, make_arrival([0], 1), table.sender, Tally())


def test_blocks_that_come_twice_are_counted_and_left_alone(table: Table) -> None:
    incoming, _ = table.expect([0, 1, 2], [4, 5, 6])
    table.write(incoming, [0, 1])
    assert table.write(incoming, [1, 0], owner=9) == 0
    assert table.write(incoming, [1, 2]) == 1
    assert table.inbox.duplicate_blocks == 3
    assert [table.block(i) for i in (4, 5, 6)] == [stamp(1, i, BLOCK_BYTES) for i in range(3)]


def test_a_position_that_nobody_wanted_is_refused_by_number(table: Table) -> None:
    incoming, _ = table.expect([0, 2], [4, 5])
    with pytest.raises(BlockOutOfRange, match="position 1 is not wanted"):
        table.write(incoming, [0, 1])
    assert table.block(4) == bytes(BLOCK_BYTES)


def test_bytes_that_do_not_match_their_checksum_do_not_land(table: Table) -> None:
    incoming, _ = table.expect([0], [4])
    good, bad = make_arrival([0], 1), make_arrival([0], 2)
    for arrival, reason in (
        (bad._replace(digests=good.digests), "positions 0 to 0 are not"),
        (good._replace(digests=good.digests[:0]), "without checksums"),
    ):
        with pytest.raises(ChecksumMismatch, match=reason):
            table.send(incoming, arrival, table.sender)
    assert table.block(4) == bytes(BLOCK_BYTES)


def test_only_the_sender_that_attached_may_write_or_abort(table: Table) -> None:
    incoming, outcome = table.expect([0], [4])
    other = FakeSender()
    with pytest.raises(BadTicket, match="another sender"):
        table.inbox.attach(incoming.slot.index, incoming.generation, other)
    with pytest.raises(BadTicket):
        table.send(incoming, make_arrival([0], 2), other)
    assert not table.inbox.fail(incoming.slot.index, incoming.generation, PeerLost("other"), other)
    assert not outcome.is_called
    assert table.write(incoming, [0]) == 1


def test_a_lost_sender_takes_only_its_own_transfers_along(table: Table) -> None:
    first, first_outcome = table.expect([0], [4])
    table.sender = FakeSender()
    _, second_outcome = table.expect([0], [5])
    table.inbox.lose(table.sender, PeerLost("gone"))
    assert isinstance(second_outcome.wait().error, PeerLost)
    assert not first_outcome.is_called
    assert len(table.inbox) == 1
    table.inbox.fence(first.transfer_id, "enough")


def test_what_is_overdue_times_out_and_the_next_deadline_is_told(table: Table) -> None:
    early, early_outcome = table.expect([0], [4], ttl_s=1.0)
    late, late_outcome = table.expect([0], [5], ttl_s=9.0)
    assert table.alarms == [early.expires_at_s, late.expires_at_s]
    assert table.inbox.expire(early.expires_at_s) == late.expires_at_s
    assert isinstance(early_outcome.wait().error, TransferTimeout)
    assert not late_outcome.is_called
    assert table.inbox.expire(late.expires_at_s) is None


def test_a_fence_waits_for_the_copy_in_progress() -> None:
    """The copy is held up half-way; the fence returns only after it, and nothing is written later."""
    entered, go_on, fenced = threading.Event(), threading.Event(), threading.Event()

    class SlowBlocks(BlockArray):
        def scatter(self, ids: Any, rows: Blocks) -> None:
            entered.set()
            assert go_on.wait(10)
            super().scatter(ids, rows)
            assert not fenced.is_set()

    table = Table()
    table.inbox = Inbox(SlowBlocks(table.memory, BLOCK_BYTES), True, 4, table.alarms.append)
    incoming, outcome = table.expect([0, 1], [4, 5])

    def fence() -> None:
        table.inbox.fence(incoming.transfer_id, "fenced")
        fenced.set()

    threads = [threading.Thread(target=table.write, args=(incoming, [0])), threading.Thread(target=fence)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    assert not fenced.wait(0.05)
    go_on.set()
    for thread in threads:
        thread.join()
    assert outcome.wait().blocks == 1
