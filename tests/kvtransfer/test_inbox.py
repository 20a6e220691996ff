"""The receive table: whatever is called in whatever order, only what was promised lands, and only in time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from transfer_ends import Outcome, stamp
from xxhash import xxh3_64_intdigest

from baton.kvtransfer.base import TransferState
from baton.kvtransfer.block_array import BlockArray, Blocks
from baton.kvtransfer.carrier import Arrival, Loan
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    ChecksumMismatch,
    MalformedFrame,
    PeerLost,
    StaleGeneration,
    TransferAborted,
    TransferError,
    TransferTimeout,
)
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.incoming import Incoming
from baton.kvtransfer.stats import Tally

NUM_BLOCKS, BLOCK_BYTES = 12, 40


class FakeSender:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, TransferError | None]] = []

    def tell_ended(self, generation: int, error: TransferError | None) -> None:
        self.told.append((generation, error))


class Table:
    """An inbox over a pool of zeros."""

    def __init__(self) -> None:
        self.memory = np.zeros(NUM_BLOCKS * BLOCK_BYTES, np.uint8)
        self.blocks = BlockArray(self.memory, BLOCK_BYTES)
        self.alarms: list[float] = []
        self.inbox = Inbox(self.blocks, checksum=True, max_open=4, set_alarm=self.alarms.append)
        self.sender = FakeSender()

    def expect(
        self, positions: list[int], block_ids: list[int], ttl_s: float = 60.0
    ) -> tuple[Incoming, Outcome]:
        outcome = Outcome()
        incoming = self.inbox.expect(positions, block_ids, ttl_s, outcome)
        self.inbox.attach(incoming.slot.index, incoming.generation, self.sender)
        return incoming, outcome

    def write(self, incoming: Incoming, positions: list[int], owner: int = 1) -> int:
        """The count of blocks that landed."""
        return self.send(incoming, make_arrival(positions, owner), self.sender)

    def send(self, incoming: Incoming, arrival: Arrival, sender: FakeSender) -> int:
        tally = Tally()
        self.inbox.write(incoming.slot.index, incoming.generation, arrival, sender, tally)
        return tally.blocks

    def block(self, block_id: int) -> bytes:
        return self.memory[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES].tobytes()


def make_arrival(positions: list[int], owner: int) -> Arrival:
    content = b"".join(stamp(owner, position, BLOCK_BYTES) for position in positions)
    rows: Blocks = np.frombuffer(content, np.dtype((np.void, BLOCK_BYTES)))
    digests = np.array([xxh3_64_intdigest(content)], np.uint64)
    return Arrival(np.array(positions, np.int64), rows, digests)


@pytest.fixture
def table() -> Table:
    return Table()


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


class Lender:
    """A sender's pool of as many blocks, and whether it may be read."""

    def __init__(self, table: Table) -> None:
        content = b"".join(stamp(1, block_id, BLOCK_BYTES) for block_id in range(NUM_BLOCKS))
        self._table = table
        self.pool = BlockArray(np.frombuffer(content, np.uint8), BLOCK_BYTES)
        self.stands: Iterator[bool] = itertools.repeat(True)

    def lend(self, incoming: Incoming, positions: list[int], is_digested: bool = True) -> None:
        ids = np.array(positions, np.int64)
        loan = Loan(ids, self.pool, ids, lambda: next(self.stands))
        place = (incoming.slot.index, incoming.generation)
        self._table.inbox.copy(*place, loan, is_digested, self._table.sender, Tally())

    def confirm(self, incoming: Incoming, positions: list[int], owner: int = 1) -> None:
        said = make_arrival(positions, owner)
        place = (incoming.slot.index, incoming.generation)
        self._table.inbox.confirm(*place, said.positions, said.digests, self._table.sender, Tally())


def test_lent_blocks_count_once_their_digests_agree(table: Table) -> None:
    lender = Lender(table)
    incoming, outcome = table.expect([2, 3], [7, 0])
    lender.lend(incoming, [2, 3])
    assert not outcome.is_called
    lender.confirm(incoming, [2, 3])
    assert outcome.wait().blocks == 2
    assert [table.block(i) for i in (7, 0)] == [stamp(1, i, BLOCK_BYTES) for i in (2, 3)]


def test_lent_blocks_that_changed_are_refused(table: Table) -> None:
    lender = Lender(table)
    incoming, outcome = table.expect([2, 3], [7, 0])
    lender.lend(incoming, [2, 3])
    with pytest.raises(ChecksumMismatch, match="positions 2 to 3 are not"):
        lender.confirm(incoming, [2, 3], owner=2)
    assert not outcome.is_called
    assert [table.block(i) for i in (7, 0)] == [bytes(BLOCK_BYTES)] * 2


@pytest.mark.parametrize("answers", [[False], [True, False]], ids=["before it was copied", "meanwhile"])
def test_a_loan_taken_back_does_not_count_and_leaves_nothing(table: Table, answers: list[bool]) -> None:
    lender = Lender(table)
    incoming, outcome = table.expect([2], [7])
    lender.stands = iter(answers)
    with pytest.raises(TransferAborted, match="fenced the transfer before its blocks were read"):
        lender.lend(incoming, [2])
    assert table.block(7) == bytes(BLOCK_BYTES)
    with pytest.raises(MalformedFrame, match="not lent"):
        lender.confirm(incoming, [2])
    assert not outcome.is_called


def test_a_loan_without_digests_is_refused_before_it_is_copied(table: Table) -> None:
    incoming, _ = table.expect([2], [7])
    with pytest.raises(ChecksumMismatch, match="without checksums"):
        Lender(table).lend(incoming, [2], is_digested=False)
    assert table.block(7) == bytes(BLOCK_BYTES)


def test_what_is_lent_again_is_counted_and_left_alone(table: Table) -> None:
    lender = Lender(table)
    incoming, _ = table.expect([1, 2, 3], [4, 5, 6])
    lender.lend(incoming, [2, 3])
    lender.confirm(incoming, [2, 3])
    lender.pool = BlockArray(np.zeros(NUM_BLOCKS * BLOCK_BYTES, np.uint8), BLOCK_BYTES)
    lender.lend(incoming, [2, 3])
    lender.confirm(incoming, [2, 3], owner=2)
    assert table.inbox.duplicate_blocks == 4
    assert table.block(5) == stamp(1, 2, BLOCK_BYTES)
    with pytest.raises(MalformedFrame, match="1 of 2 blocks are lent again"):
        lender.lend(incoming, [1, 2])


def test_a_loan_for_a_slots_former_tenant_is_refused(table: Table) -> None:
    lender = Lender(table)
    former, _ = table.expect([2], [7])
    lender.lend(former, [2])
    table.inbox.fence(former.transfer_id, "fenced")
    tenant, outcome = table.expect([2], [5])
    for late in (lender.lend, lender.confirm):
        with pytest.raises(StaleGeneration, match=f"generation {former.generation}"):
            late(former, [2])
    assert not outcome.is_called
    assert table.block(5) == bytes(BLOCK_BYTES)
    table.inbox.fence(tenant.transfer_id, "enough")


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


class AnyOrder(RuleBasedStateMachine):
    """Expect, write (fresh, stale, twice), fence, expire in any order: a block only ever holds the bytes of
    the transfer that it was last promised to, and what is not promised never changes."""

    transfers = Bundle("transfers")

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.owners = 0
        self.expected: dict[int, bytes] = {block_id: bytes(BLOCK_BYTES) for block_id in range(NUM_BLOCKS)}
        self.open: dict[bytes, tuple[Incoming, int, dict[int, int], Outcome]] = {}

    @rule(
        target=transfers, wanted=st.lists(st.integers(0, NUM_BLOCKS - 1), min_size=1, max_size=4, unique=True)
    )
    def expect(self, wanted: list[int]) -> Any:
        self.owners += 1
        block_ids = dict(enumerate(wanted))
        try:
            incoming, outcome = self.table.expect(list(block_ids), wanted)
        except TransferError:
            taken = {block for _, _, blocks, _ in self.open.values() for block in blocks.values()}
            assert taken & set(wanted) or len(self.open) == 4
            return multiple()
        self.open[incoming.transfer_id] = (incoming, self.owners, block_ids, outcome)
        return incoming, self.owners, block_ids, outcome

    @rule(transfer=transfers, data=st.data())
    def write(self, transfer: Any, data: st.DataObject) -> None:
        incoming, owner, block_ids, outcome = transfer
        positions = data.draw(st.lists(st.sampled_from(sorted(block_ids)), min_size=1, unique=True))
        if incoming.transfer_id not in self.open:
            with pytest.raises(StaleGeneration):
                self.table.write(incoming, positions, owner)
            return
        self.table.write(incoming, positions, owner)
        for position in positions:
            self.expected[block_ids[position]] = stamp(owner, position, BLOCK_BYTES)
        if outcome.is_called:
            assert outcome.wait().error is None
            assert incoming.landed.all()
            del self.open[incoming.transfer_id]

    @rule(transfer=consumes(transfers))
    def fence(self, transfer: Any) -> None:
        incoming, _, _, outcome = transfer
        was_open = self.open.pop(incoming.transfer_id, None) is not None
        self.table.inbox.fence(incoming.transfer_id, "fenced")
        assert (outcome.wait().error is not None) == was_open

    @invariant()
    def every_block_holds_what_it_should(self) -> None:
        for block_id, content in self.expected.items():
            assert self.table.block(block_id) == content

    @invariant()
    def the_books_agree(self) -> None:
        assert len(self.table.inbox) == len(self.open)

    def teardown(self) -> None:
        self.table.inbox.close("the test is over")
        assert len(self.table.inbox) == 0
        outcomes = [outcome for _, _, _, outcome in self.open.values()]
        assert all(isinstance(outcome.wait().error, TransferError) for outcome in outcomes)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
