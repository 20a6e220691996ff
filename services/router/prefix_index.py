"""Which worker probably caches which blocks, learned from where requests ran.

Approximate: a worker may have evicted what the index still credits it with, which costs a worse placement and
never a wrong token. Bounded by the worker's own pool: nobody caches more blocks than it has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class PrefixIndex:
    """Least recently used block hashes of each worker."""

    def __init__(self) -> None:
        self._blocks: dict[str, OrderedDict[bytes, None]] = {}
        self._slots: dict[str, int] = {}

    def slot(self, worker_id: str) -> int:
        """Where `match_all` has this worker."""
        return self._slots.setdefault(worker_id, len(self._slots))

    def match_all(self, hashes: Sequence[bytes]) -> npt.NDArray[np.int32]:
        """(slots,), how many leading blocks each worker probably caches."""
        return np.array([self.match(worker_id, hashes) for worker_id in self._slots], np.int32)

    def add(self, worker_id: str, hashes: Sequence[bytes], capacity_blocks: int) -> None:
        """Notes that `worker_id`, whose pool has `capacity_blocks`, has just held these blocks."""
        blocks = self._blocks.setdefault(worker_id, OrderedDict())
        for block_hash in reversed(hashes):
            blocks[block_hash] = None
            blocks.move_to_end(block_hash)
        while len(blocks) > capacity_blocks:
            blocks.popitem(last=False)

    def match(self, worker_id: str, hashes: Sequence[bytes]) -> int:
        """How many leading blocks `worker_id` probably caches."""
        blocks = self._blocks.get(worker_id)
        if not blocks:
            return 0
        for count, block_hash in enumerate(hashes):
            if block_hash not in blocks:
                return count
        return len(hashes)

    def forget(self, worker_id: str) -> None:
        """The worker has left or was restarted: its pool is empty."""
        self._blocks.pop(worker_id, None)
