"""Which worker caches which blocks: exactly, as far as workers tell (`baton.router.kv_events`), else learned from
where requests ran.

What was learned may be wrong, for a worker may have evicted it; that costs a worse placement, never a wrong token.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from baton.block_hash import HASH_BYTES
from baton.errors import Overloaded
from baton.router import block_table
from baton.router.compiled import is_native_built, native

MAX_PAIRS = 10_000_000
"""Of a block and a worker: 0.6 GB where each block lies on one worker; reserved, not taken, beforehand."""

MAX_WORKERS = 8192

Hashes: TypeAlias = bytes | Sequence[bytes]
"""Block hashes in the order of their prompt, 16 bytes each: packed into one `bytes` (fast), or one by one."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """pairs: of a block and a worker that holds it. evicted_blocks: to make room, since the start."""

    pairs: int
    blocks: int
    used_bytes: int
    evicted_blocks: int


class PrefixIndex:
    """At most `max_pairs` pairs of a block and a worker; what was neither matched nor noted for longest goes first.

    Every worker has a slot, a small number that stays its own until it is forgotten. Not thread-safe.
    """

    def __init__(self, max_pairs: int = MAX_PAIRS) -> None:
        self._table = _make_table(max_pairs)
        self._slots: dict[str, int] = {}
        self._free_slots: list[int] = []
        self._top = 0

    def slot(self, worker_id: str) -> int:
        """Where the worker stands in the answers of `match_all`. Raises Overloaded for more than MAX_WORKERS."""
        slot = self._slots.get(worker_id)
        if slot is None:
            if not self._free_slots and self._top == MAX_WORKERS:
                raise Overloaded(f"the index has room for {MAX_WORKERS} workers")
            slot = self._free_slots.pop() if self._free_slots else self._top
            self._top = max(self._top, slot + 1)
            self._slots[worker_id] = slot
        return slot

    def add(self, worker_id: str, hashes: Hashes, capacity_blocks: int) -> None:
        """`worker_id`, whose pool has `capacity_blocks`, has just held these blocks. Of all that was noted the most
        recent `capacity_blocks` count, a prompt's first blocks longer than its last ones."""
        first = hashes[: capacity_blocks * (HASH_BYTES if isinstance(hashes, bytes) else 1)]
        slot = self.slot(worker_id)
        self._table.store(slot, _packed_backwards(first))
        self._table.shrink(slot, capacity_blocks)

    def store(self, worker_id: str, hashes: Hashes) -> None:
        """`worker_id` holds these blocks."""
        self._table.store(self.slot(worker_id), _packed(hashes))

    def remove(self, worker_id: str, hashes: Hashes) -> None:
        """`worker_id` does not hold these blocks any more."""
        if worker_id in self._slots:
            self._table.remove(self._slots[worker_id], _packed(hashes))

    def expect(self, worker_id: str, hashes: Hashes) -> None:
        """A request will make `worker_id` hold these blocks. They count as held until `settle` says the same; after
        that only those that were stored."""
        self._table.expect(self.slot(worker_id), _packed(hashes))

    def settle(self, worker_id: str, hashes: Hashes) -> None:
        if worker_id in self._slots:
            self._table.settle(self._slots[worker_id], _packed(hashes))

    def match(self, worker_id: str, hashes: Hashes) -> int:
        """How many leading blocks `worker_id` holds."""
        slot = self._slots.get(worker_id)
        return 0 if slot is None else self._table.match(slot, _packed(hashes))

    def match_all(self, hashes: Hashes) -> NDArray[np.int32]:
        """How many leading blocks each worker holds, by slot: [1 + the highest slot ever given]."""
        leading = np.empty(self._top, np.int32)
        self._table.match_all(_packed(hashes), leading)
        return leading

    def stored(self, worker_id: str) -> int:
        """How many blocks `worker_id` is credited with, without those that are merely expected."""
        slot = self._slots.get(worker_id)
        return 0 if slot is None else self._table.stored(slot)

    def clear(self, worker_id: str) -> None:
        """The worker's pool is empty."""
        if worker_id in self._slots:
            self._table.shrink(self._slots[worker_id], 0)

    def forget(self, worker_id: str) -> None:
        """The worker has left or was restarted; its slot may become another's."""
        self.clear(worker_id)
        slot = self._slots.pop(worker_id, None)
        if slot is not None:
            self._free_slots.append(slot)

    def stats(self) -> IndexStats:
        return IndexStats(*self._table.stats())


def _make_table(max_pairs: int) -> block_table.BlockTable | native.BlockTable:
    if not is_native_built():
        return block_table.BlockTable(max_pairs)
    return native.BlockTable(max_pairs, secrets.randbits(64), secrets.randbits(64))


def _packed(hashes: Hashes) -> bytes:
    return hashes if isinstance(hashes, bytes) else b"".join(hashes)


def _packed_backwards(hashes: Hashes) -> bytes:
    if isinstance(hashes, bytes):
        return np.frombuffer(hashes, f"V{HASH_BYTES}")[::-1].tobytes()
    return b"".join(reversed(hashes))
