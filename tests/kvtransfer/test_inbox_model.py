"""The receive table against a model of it: whatever is called in whatever order, only what was promised lands."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from receive_table import BLOCK_BYTES, NUM_BLOCKS, Table
from transfer_ends import Outcome, stamp

from baton.kvtransfer.errors import StaleGeneration, TransferError
from baton.kvtransfer.incoming import Incoming


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
