"""The yardstick of `kvtransfer.py`: one process that copies as many bytes in one piece."""

from __future__ import annotations

import mmap
import time

import numpy as np
from kv_pair import POOL_BYTES, Case, set_realtime
from numpy.typing import NDArray


class Memory:
    """Two shared mappings; each copy starts elsewhere, so that it runs on main memory."""

    def __init__(self, case: Case) -> None:
        self._bytes = case.bytes
        self._source, self._target = _mapping(), _mapping()
        self._choose = np.random.default_rng()

    def burst(self, repetitions: int, realtime: bool) -> list[float]:
        """Seconds of each copy."""
        set_realtime(realtime)
        seconds = [self._copy() for _ in range(repetitions)]
        set_realtime(False)
        return seconds

    def _copy(self) -> float:
        source, target = self._choose.integers(0, POOL_BYTES - self._bytes, 2)
        started_s = time.perf_counter()
        self._target[target : target + self._bytes] = self._source[source : source + self._bytes]
        return time.perf_counter() - started_s


def _mapping() -> NDArray[np.uint8]:
    result = np.frombuffer(mmap.mmap(-1, POOL_BYTES), np.uint8)
    result[:] = 1
    return result
