"""Where a sender's rows go in the receiver's pool: whole blocks, or of each block the KV heads that it owes.

A block has as many parts as its rank has KV heads. One sender may bring them all, or several some each, as when
two ranks prefill for one that decodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baton.kvtransfer.block_array import BlockArray, Blocks, Ids
from baton.kvtransfer.errors import BadTicket, MalformedFrame
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.plan import Units, landing_units


@dataclass(frozen=True, slots=True)
class Landing:
    """parts: of each block, those that the rows hold. units: of the pool that a row fills, None for all."""

    blocks: BlockArray
    parts: range
    row_bytes: int
    units: Units | None = None

    def overlaps(self, other: Landing) -> bool:
        return max(self.parts.start, other.parts.start) < min(self.parts.stop, other.parts.stop)

    def require_fitting(self, rows: Blocks) -> None:
        """Raises MalformedFrame for rows of another size than this sender's."""
        if rows.dtype.itemsize != self.row_bytes:
            raise MalformedFrame(
                f"rows of {rows.dtype.itemsize} bytes, {self.row_bytes} are expected: layouts that differ?"
            )

    def scatter(self, block_ids: Ids, rows: Blocks) -> None:
        """Writes rows[i] to its place in block_ids[i]; the rest of a block stays. Ids were checked before."""
        if self.units is None:
            self.blocks.scatter(block_ids, rows)
            return
        unit = np.dtype((np.void, self.row_bytes // self.units.per_row))
        targets = self.units.of_rows(block_ids).reshape(-1)
        self.blocks.units(unit.itemsize).put(targets, rows.view(unit), mode="clip")


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
        parts = range(heads.start - own.start, heads.stop - own.start)
        row_bytes = self._blocks.block_bytes * len(heads) // len(own)
        return Landing(self._blocks, parts, row_bytes, landing_units(self._layout, heads))
