"""Which worker a session belongs to: consistent hashing with bounded loads.

Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads" (SODA 2018). Every router that knows
the same workers and similar loads finds the same answer, without talking to the others; a session moves only
when its worker leaves or carries more than `bound` times the mean, rounded up.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from functools import lru_cache

import xxhash

_POINTS_PER_WORKER = 64
LOAD_BOUND = 1.25


def owner(session_key: str, loads: Mapping[str, int], bound: float = LOAD_BOUND) -> str:
    """The worker of `session_key` among the keys of `loads` (requests each carries now, without this one)."""
    capacity = math.ceil(bound * (sum(loads.values()) + 1) / len(loads))
    ring = _ring(tuple(sorted(loads)))
    start = bisect(ring, (xxhash.xxh3_64_intdigest(session_key.encode()), ""))
    for offset in range(len(ring)):
        worker_id = ring[(start + offset) % len(ring)][1]
        if loads[worker_id] < capacity:
            return worker_id
    raise AssertionError("the least loaded worker always has room: a bound below 1 leaves none")


@lru_cache(maxsize=64)
def _ring(worker_ids: tuple[str, ...]) -> Sequence[tuple[int, str]]:
    return sorted(
        (xxhash.xxh3_64_intdigest(f"{worker_id}#{point}".encode()), worker_id)
        for worker_id in worker_ids
        for point in range(_POINTS_PER_WORKER)
    )
