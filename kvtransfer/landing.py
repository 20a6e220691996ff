"""Where a sender's rows go in the receiver's pool: whole blocks, or of each block the KV heads that it owes.

A block has as many parts as its rank has KV heads. One sender may bring them all, or several some each, as when
two ranks prefill for one that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baton.kvtransfer import rows
from baton.kvtransfer.block_array import BlockArray, Blocks, Ids, chunk_blocks
from baton.kvtransfer.carrier import Loan
from baton.kvtransfer.errors import BadTicket, MalformedFrame
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.plan import Units, landing_units
from baton.kvtransfer.rows import Digests


@dataclass(frozen=True, slots=True)
class Landing:
    """parts: of each block, those that the rows hold. units: of the pool that a row fills, None for all."""

    blocks: BlockArray
    parts: range
    row_bytes: int
    units: Units | None = None

    def overlaps(self, other: Landing) -> bool:
        return max(self.parts.start, other.parts.start) < min(self.parts.stop, other.parts.stop)

    def require_fitting(self, row_bytes: int) -> None:
        """Raises MalformedFrame for rows of another size than this sender's."""
        if row_bytes != self.row_bytes:
            raise MalformedFrame(
                f"rows of {row_bytes} bytes, {self.row_bytes} are expected: layouts that differ?"
            )

    def digest(self, source: Blocks) -> Digests:
        return rows.digest(source, rows.IN_ORDER, len(source), chunk_blocks(self.row_bytes))

    def scatter(self, block_ids: Ids, source: Blocks) -> None:
        """Writes source[i] to its place in block_ids[i]; the rest of a block stays. Ids were checked before."""
        if self.units is None:
            self.blocks.scatter(block_ids, source)
            return
        unit = np.dtype((np.void, self.row_bytes // self.units.per_row))
        targets = self.units.of_rows(block_ids).reshape(-1)
        self.blocks.units(unit.itemsize).put(targets, source.view(unit), mode="clip")

    def copy(self, block_ids: Ids, loan: Loan, with_digests: bool) -> Digests:
        """Writes the lent blocks to block_ids, and says what was written."""
        assert self.units is None, "only whole blocks are lent"
        return self.blocks.copy_from(loan.pool, loan.source, block_ids, with_digests)

    def clear(self, block_ids: Ids) -> None:
        """Takes back what `copy` wrote."""
        self.blocks.clear(block_ids)


class Landings:
    """All the ways into one pool."""

    def __init__(self, blocks: BlockArray, layout: KVLayout | None) -> None:
        """Without a layout a block has one part."""
        self.parts = 1 if layout is None else len(layout.heads)
        self._blocks = blocks
        self._layout = layout
        self._known: dict[range, Landing] = {}
        self._whole = Landing(blocks, range(self.parts), blocks.block_bytes)

    def of(self, heads: range) -> Landing:
        """For rows of these heads of the model; of whole blocks where none are named.

        Raises BadTicket for heads that this rank does not hold.
        """
        if not heads:
            return self._whole
        if heads not in self._known:
            self._known[heads] = self._make(heads)
        return self._known[heads]

    def _make(self, heads: range) -> Landing:
        own = range(0) if self._layout is None else self._layout.heads
        if self._layout is None or heads.start < own.start or heads.stop > own.stop:
            raise BadTicket(f"KV heads {heads.start} to {heads.stop - 1} do not belong to this rank")
        if heads == own:
            return self._whole
        if not self._blocks.is_on_host:
            raise BadTicket(f"a pool on a device takes whole blocks, not KV heads {heads.start} and on")
        parts = range(heads.start - own.start, heads.stop - own.start)
        row_bytes = self._blocks.block_bytes * len(heads) // len(own)
        return Landing(self._blocks, parts, row_bytes, landing_units(self._layout, heads))
