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
        self._prefill, self._decode = (
            Candidates.of(workers.get(role, ())) for role in (Role.PREFILL, Role.DECODE)
        )
        self._rows = {
            worker_id: (pool, row)
            for pool in (self._prefill, self._decode)
            for row, worker_id in enumerate(pool.worker_ids)
        }
        self._faded_at_s = 0.0
        self._prefill_slots, self._decode_slots = (
            np.array([slot_of(worker_id) for worker_id in pool.worker_ids], np.int64)
            for pool in (self._prefill, self._decode)
        )

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
        prefill, decode = self._prefill, self._decode
        decode.local_prefill_s *= math.exp((self._faded_at_s - now_s) / LOCAL_MEMORY_S)
        self._faded_at_s = now_s
        prefill.write_cached(matched_tokens, self._prefill_slots)
        decode.write_cached(matched_tokens, self._decode_slots)
        if excluded:
            prefill, decode = prefill.without(excluded), decode.without(excluded)
        return Snapshot(prefill, decode)
