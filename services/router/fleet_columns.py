"""The usable workers of both roles as columns that are kept, so that a placement copies nothing of them: a worker's
row is written when its load changes, and what a prompt finds cached is written before each placement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from baton.fleet import Role
from baton.router.candidates import Candidate, Candidates
from baton.router.snapshot import Snapshot

LOCAL_MEMORY_S = 4.0
"""Time constant with which prompts that decode workers were given to compute are forgotten."""


class FleetColumns:
    """Made anew when a worker joins, leaves, or can be used no longer."""

    def __init__(self, workers: Mapping[Role, Sequence[Candidate]], slot_of: Callable[[str], int]) -> None:
        """slot_of: where a worker stands in what `snapshot` is given."""
        self._pools = {role: Candidates.of(workers.get(role, ())) for role in Role}
        self._rows = {
            worker_id: (pool, row)
            for pool in self._pools.values()
            for row, worker_id in enumerate(pool.worker_ids)
        }
        self._faded_at_s = 0.0
        self._slots = {
            role: np.array([slot_of(worker_id) for worker_id in pool.worker_ids], np.intp)
            for role, pool in self._pools.items()
        }

    def write(self, worker: Candidate) -> None:
        """Its load has changed; a worker that is not usable is passed over."""
        pool, row = self._rows.get(worker.worker_id, (None, 0))
        if pool is not None:
            pool.write(row, worker.load())

    def note_local_prefill(self, worker_id: str, prefill_s: float) -> None:
        """A decode worker was given a prompt to compute that takes so long."""
        pool, row = self._rows.get(worker_id, (None, 0))
        if pool is not None:
            pool.local_prefill_s[row] += prefill_s

    def snapshot(
        self, matched_tokens: NDArray[np.int32], now_s: float, excluded: frozenset[str] = frozenset()
    ) -> Snapshot:
        """For a prompt of which so many tokens are cached at each worker, by slot, without the workers `excluded`.
        Good until the next one is taken: both look at the same columns. now_s: on any clock that does not go
        backwards."""
        self._pools[Role.DECODE].local_prefill_s *= math.exp((self._faded_at_s - now_s) / LOCAL_MEMORY_S)
        self._faded_at_s = now_s
        for role, pool in self._pools.items():
            pool.write_cached(matched_tokens[self._slots[role]])
        prefill, decode = self._pools[Role.PREFILL], self._pools[Role.DECODE]
        if excluded:
            prefill, decode = prefill.without(excluded), decode.without(excluded)
        return Snapshot(prefill, decode)
