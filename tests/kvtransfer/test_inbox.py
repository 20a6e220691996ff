"""The receive table: whatever is called in whatever order, only what was promised lands, and only in time."""

from __future__ import annotations

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
from baton.kvtransfer.carrier import Arrival, Chunk
from baton.kvtransfer.errors import (
    BadTicket,
    BlockOutOfRange,
    ChecksumMismatch,
    PeerLost,
    StaleGeneration,
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


def make_chunk(positions: list[int], owner: int) -> Chunk:
    content = b"".join(stamp(owner, position, BLOCK_BYTES) for position in positions)
    rows: Blocks = np.frombuffer(content, np.dtype((np.void, BLOCK_BYTES)))
    return Chunk(rows, xxh3_64_intdigest(content))


def make_arrival(positions: list[int], owner: int) -> Arrival:
    """Two blocks a chunk."""
    chunks = [make_chunk(positions[at : at + 2], owner) for at in range(0, len(positions), 2)]
    return Arrival(np.array(positions, np.int64), iter(chunks))


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
    good, bad = make_chunk([0], 1), make_chunk([0], 2)
    for chunk, reason in (
        (bad._replace(digest=good.digest), "positions 0 to 0 are not"),
        (good._replace(digest=None), "without checksums"),
    ):
        with pytest.raises(ChecksumMismatch, match=reason):
            table.send(incoming, Arrival(np.array([0]), iter([chunk])), table.sender)
    assert table.block(4) == bytes(BLOCK_BYTES)


def test_a_fence_between_two_chunks_of_a_frame_keeps_the_second_out(table: Table) -> None:
    incoming, outcome = table.expect([0, 1], [4, 5])

    def chunks() -> Iterator[Chunk]:
        yield make_chunk([0], 1)
        table.inbox.fence(incoming.transfer_id, "fenced")
        table.expect([0, 1], [4, 5])
        yield make_chunk([1], 1)

    with pytest.raises(StaleGeneration):
        table.send(incoming, Arrival(np.array([0, 1]), chunks()), table.sender)
    assert outcome.wait().blocks == 1
    assert table.block(5) == bytes(BLOCK_BYTES)


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
