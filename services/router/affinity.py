"""Which worker a session belongs to: rendezvous hashing with bounded loads.

Every worker's key and the session's are mixed into a score, and the highest score wins (Thaler, Ravishankar: "Using
Name-Based Mappings to Increase Hit Rates", IEEE/ACM ToN 6, 1998), passing over whoever carries more than `bound`
times the mean (the rule of Mirrokni, Thorup, Zadimoghaddam: "Consistent Hashing with Bounded Loads", SODA 2018). So
every router that knows the same workers and similar loads finds the same answer, without talking to the others, and
a session moves only when its worker leaves or is too busy; then each of its sessions moves to a worker of its own
second choice. Unlike a ring this needs no table, and costs a few operations over columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

LOAD_BOUND = 1.25
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_FOLD = np.uint64(32)


def worker_keys(worker_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """(n,), what `owner` and `scores` know workers by; made once for a worker."""
    return np.array([session_hash(worker_id) for worker_id in worker_ids], np.uint64)


def session_hash(key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode())


def scores(key: int, workers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """(n,), how much a key of 64 bits belongs to each worker; uniform, and independent between keys."""
    mixed = (workers ^ np.uint64(key)) * _MULTIPLIER
    mixed ^= mixed >> _FOLD
    mixed *= _MULTIPLIER
    mixed ^= mixed >> _FOLD
    return mixed


def within_bound(loads: npt.NDArray[np.float64], bound: float = LOAD_BOUND) -> npt.NDArray[np.bool_]:
    """(n,), who may take one more request; there always is somebody. loads: (n,), requests that each carries now,
    without this one."""
    capacity = math.ceil(bound * (float(loads.sum()) + 1) / len(loads))
    return loads < capacity


def favourite(session_key: str, workers: npt.NDArray[np.uint64], is_open: npt.NDArray[np.bool_]) -> int:
    """Index of the worker that `session_key` belongs to among those that are open, of which there is one at least.
    workers: (n,) of `worker_keys`. is_open: (n,)."""
    return int(np.where(is_open, scores(session_hash(session_key), workers), np.uint64(0)).argmax())


def owner(
    session_key: str,
    workers: npt.NDArray[np.uint64],
    loads: npt.NDArray[np.float64],
    bound: float = LOAD_BOUND,
) -> int:
    """Index of the worker of `session_key`. workers: (n,) of `worker_keys`. loads: as `within_bound` takes them."""
    return favourite(session_key, workers, within_bound(loads, bound))
