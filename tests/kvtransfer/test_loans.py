"""Blocks that a sender lends to the receive table: they count once they are proved, and while they are lent."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from receive_table import BLOCK_BYTES, NUM_BLOCKS, Table, make_arrival
from transfer_ends import stamp

from baton.kvtransfer.block_array import BlockArray
from baton.kvtransfer.carrier import Loan
from baton.kvtransfer.errors import ChecksumMismatch, MalformedFrame, StaleGeneration, TransferAborted
from baton.kvtransfer.incoming import Incoming
from baton.kvtransfer.stats import Tally


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
