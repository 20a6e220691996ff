"""From two layouts and the blocks that are wanted to the fewest contiguous copies. Pure: numbers in, numbers out.

The sender converts. A share of a block crosses as one row, the wanted block of the receiver's layout cut down to
the heads that this sender owes it: [layers, 2, receiver's block_size, shared heads, head_dim], in the receiver's
dtype. So the receiver's checks, fences and tickets are the same for all pairs, no byte crosses that is not
wanted, and each sender rank works on its own part. Memory is cut into units, the largest pieces that are
contiguous on both sides wherever they lie: a whole block between equal layouts, `gcd(block sizes)` tokens of one
layer's keys or values where the heads are equal, one token's shared heads otherwise. A row is a list of units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baton.kvtransfer.layout import KVLayout

Ids = NDArray[np.int64]

NOTHING = -1
"""In place of a unit: tokens beyond the request's last one, which are zero at the receiver."""


def shared_heads(source: KVLayout, destination: KVLayout) -> range:
    """The model's KV heads that the rank `source` has to send to the rank `destination`; empty for none.

    Where several ranks hold the same heads one of them sends, another one to each replica of the receiver. The
    shares of all source ranks cover the destination's heads exactly once.
    """
    if source.tp_rank % source.replicas != destination.tp_rank % source.replicas:
        return range(0)
    first = max(source.heads.start, destination.heads.start)
    return range(first, max(first, min(source.heads.stop, destination.heads.stop)))


@dataclass(frozen=True, slots=True)
class Units:
    """One side's blocks as [2 * layers or 1, runs of tokens, groups of heads] units of `values` values each.

    A row takes of each block all layers and tokens, and groups first_group to first_group + row_groups.
    """

    values: int
    planes: int
    token_runs: int
    run_tokens: int
    groups: int
    first_group: int
    row_groups: int

    @property
    def per_block(self) -> int:
        return self.planes * self.token_runs * self.groups

    @property
    def per_row(self) -> int:
        return self.planes * self.token_runs * self.row_groups

    def of_rows(self, block_ids: Ids) -> Ids:
        """Units [n, per_row] of the rows of whole blocks, in a row's order."""
        planes = np.arange(self.planes)[:, None, None] * self.token_runs
        runs = (planes + np.arange(self.token_runs)[:, None]) * self.groups
        within = runs + self.first_group + np.arange(self.row_groups)
        return block_ids[:, None] * self.per_block + within.reshape(1, -1)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What one sender rank owes one receiver rank, and where it lies on the sender's side."""

    source: KVLayout
    destination: KVLayout
    heads: range

    @classmethod
    def between(cls, source: KVLayout, destination: KVLayout) -> Conversion:
        """Raises LayoutMismatch naming the field where the two cannot be converted."""
        source.require_convertible(destination)
        return cls(source, destination, shared_heads(source, destination))

    @property
    def row_values(self) -> int:
        destination = self.destination
        return destination.layers * 2 * destination.block_size * len(self.heads) * destination.head_dim

    @property
    def row_bytes(self) -> int:
        return self.row_values * self.destination.value_bytes

    @property
    def source_units(self) -> Units:
        """The sender's pool in units."""
        a, b = self.source.block_size, self.destination.block_size
        return _units(self.source, self.heads, math.gcd(a, b), may_join_layers=a == b)

    def sources_of(self, positions: Ids, tokens: int) -> tuple[Ids, Ids]:
        """First and last (exclusive) source position of each wanted position, in a request of `tokens`."""
        a, b = self.source.block_size, self.destination.block_size
        ends = np.minimum((positions + 1) * b, tokens)
        return positions * b // a, np.maximum(-(-ends // a), positions * b // a)

    def units_of(self, positions: Ids, block_at: Ids, tokens: int) -> Ids:
        """The sender's units [n, units a row] of the rows for the wanted `positions`, NOTHING beyond `tokens`.

        block_at: int64, the local block at each source position; those of `sources_of` have to be there.
        """
        units = self.source_units
        if units.planes == 1:
            return units.of_rows(block_at[positions])
        a, b, run = self.source.block_size, self.destination.block_size, units.run_tokens
        at = positions[:, None] * b + np.arange(0, b, run)
        exists = at < tokens
        place = np.where(exists, at // a, 0)
        first = block_at[place] * units.per_block + (at % a // run) * units.groups + units.first_group
        planes = np.arange(units.planes) * (units.token_runs * units.groups)
        index = first[:, None, :, None] + planes[:, None, None] + np.arange(units.row_groups)
        index = np.where(exists[:, None, :, None], index, NOTHING)
        return np.asarray(index.reshape(len(positions), -1), np.int64)


def landing_units(layout: KVLayout, heads: range) -> Units:
    """The receiver's pool in units of the rows that carry the model's `heads`."""
    return _units(layout, heads, layout.block_size, may_join_layers=True)


def _units(layout: KVLayout, heads: range, run_tokens: int, *, may_join_layers: bool) -> Units:
    own = layout.heads
    planes = 2 * layout.layers
    if heads == own:
        if may_join_layers:
            return Units(layout.block_values, 1, 1, layout.block_size, 1, 0, 1)
        values = run_tokens * len(own) * layout.head_dim
        return Units(values, planes, layout.block_size // run_tokens, run_tokens, 1, 0, 1)
    first = heads.start - own.start
    group = math.gcd(len(own), first, len(heads))
    return Units(
        values=group * layout.head_dim,
        planes=planes,
        token_runs=layout.block_size,
        run_tokens=1,
        groups=len(own) // group,
        first_group=first // group,
        row_groups=len(heads) // group,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Copies:
    """Contiguous copies from a pool to rows that lie one behind the other, in units: source, target and length
    of each, int64 [n]."""

    source: Ids
    target: Ids
    length: Ids

    @classmethod
    def of(cls, units: Ids) -> Copies:
        """The fewest copies that fill rows of `units`: neighbours on both sides travel together."""
        flat = units.reshape(-1)
        target = np.flatnonzero(flat != NOTHING)
        source = flat[target]
        is_start = np.ones(len(target), np.bool_)
        is_start[1:] = (np.diff(source) != 1) | (np.diff(target) != 1)
        starts = np.flatnonzero(is_start)
        return cls(source[starts], target[starts], np.diff(np.append(starts, len(target))))

    def __len__(self) -> int:
        return len(self.source)
