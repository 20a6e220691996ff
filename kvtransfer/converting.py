"""The sender's half of a hand-off between pools that lie differently: gathers units, converts, checksums.

Each session has a packer of its own, for it knows which local block holds which part of the request. The local
pool is read within `pack` alone, so a fence has nothing more to wait for, on any scheme.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from baton.kvtransfer import rows
from baton.kvtransfer.base import Ticket
from baton.kvtransfer.block_array import BlockArray, Blocks, Ids, chunk_blocks
from baton.kvtransfer.carrier import Carried, RowPacker
from baton.kvtransfer.copying import max_rows
from baton.kvtransfer.errors import BadTicket, LayoutMismatch
from baton.kvtransfer.layout import KVLayout
from baton.kvtransfer.plan import NOTHING, Conversion

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def converter_for(
    ticket: Ticket, blocks: BlockArray, layout: KVLayout, checksum: bool
) -> ConvertingPacker | None:
    """What packs the local `blocks` for that receiver; None where its blocks lie as the local ones do.

    Raises LayoutMismatch and BadTicket.
    """
    here, there = blocks.block_bytes, ticket.block_bytes
    if ticket.layout == layout:
        if here != there:
            raise LayoutMismatch(f"a block has {here} bytes here, {there} at the peer (block_bytes)")
        return None
    if not blocks.is_on_host:
        raise LayoutMismatch(
            f"pools on a device are not converted: {layout} here, {ticket.layout} at the peer"
        )
    conversion = Conversion.between(layout, ticket.layout)
    for side, block_bytes in ((layout, here), (ticket.layout, there)):
        if side.block_bytes != block_bytes:
            raise LayoutMismatch(f"a block of {block_bytes} bytes is none of {side} (block_bytes)")
    return ConvertingPacker(blocks, checksum, conversion, ticket)


class ConvertingPacker(RowPacker):
    """Packs the rows that one ticket wants of this rank; used under its session's lock."""

    def __init__(self, blocks: BlockArray, checksum: bool, conversion: Conversion, ticket: Ticket) -> None:
        """blocks: the local pool, in the layout `conversion.source`."""
        self.heads = conversion.heads
        self.row_bytes = conversion.row_bytes
        self._chunk_rows = chunk_blocks(max(1, self.row_bytes))
        self.max_blocks = max_rows(max(1, self.row_bytes))
        self._checksum = checksum
        self._blocks = blocks
        self._conversion = conversion
        wanted = np.frombuffer(ticket.positions, np.int32).astype(np.int64)
        if ticket.tokens is not None and len(wanted):
            self._require_within(int(wanted[-1]), ticket.tokens)
        full_tokens = (int(wanted[-1]) + 1) * conversion.destination.block_size if len(wanted) else 0
        self._tokens = full_tokens if ticket.tokens is None else min(ticket.tokens, full_tokens)
        _, ends = conversion.sources_of(wanted, self._tokens)
        self._block_at: Ids = np.full(int(ends.max(initial=0)), NOTHING)

    def _require_within(self, position: int, tokens: int) -> None:
        if position * self._conversion.destination.block_size >= tokens:
            raise BadTicket(f"position {position} is wanted of a request of {tokens} tokens")

    def add(self, positions: Ids, block_ids: Ids) -> None:
        """Block ids[i] of the local pool holds source position[i]; what nobody wants, or is known, is skipped."""
        is_useful = (positions >= 0) & (positions < len(self._block_at))
        positions, block_ids = positions[is_useful], block_ids[is_useful]
        is_new = self._block_at[positions] == NOTHING
        self._block_at[positions[is_new]] = block_ids[is_new]

    def has_all(self, wanted: Ids) -> NDArray[np.bool_]:
        """Which of the receiver's positions can be packed now."""
        known = np.concatenate(([0], np.cumsum(self._block_at != NOTHING)))
        starts, ends = self._conversion.sources_of(wanted, self._tokens)
        is_complete: NDArray[np.bool_] = known[ends] - known[starts] == ends - starts
        return is_complete

    def pack(self, block_ids: Ids) -> Carried:
        """block_ids: the receiver's positions, of which `has_all` is true."""
        converted = self._convert(block_ids)
        digests = b""
        if self._checksum:
            digests = rows.digest(converted, rows.IN_ORDER, len(converted), self._chunk_rows).tobytes()
        return Carried(digests, (converted.view(np.uint8).data,))

    def _convert(self, positions: Ids) -> Blocks:
        """The rows of `positions`, in a buffer that no later call touches."""
        conversion = self._conversion
        source, destination = conversion.source, conversion.destination
        units = conversion.units_of(positions, self._block_at, self._tokens).reshape(-1)
        unit_bytes = conversion.source_units.values * source.value_bytes
        # mode="clip" reads unit 0 in place of NOTHING, which is then cleared.
        gathered = self._blocks.units(unit_bytes).take(units, mode="clip")
        values = gathered.view(np.uint8).reshape(len(units), unit_bytes)
        values[units == NOTHING] = 0
        if source.dtype != destination.dtype:
            wide = torch.from_numpy(values.reshape(-1)).view(_DTYPES[source.dtype])
            values = wide.to(_DTYPES[destination.dtype]).view(torch.uint8).numpy()
        return values.reshape(-1).view(np.dtype((np.void, self.row_bytes)))
