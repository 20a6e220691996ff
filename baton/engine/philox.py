"""Philox4x32-10: random numbers as a pure function of (seed, token index).

A counter-based generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
SC '11): the key is the seed, the counter is the index, and there is no state. So a sequence draws the same
number for the same token in whatever batch, after preemption, and on whichever worker it runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW_32_BITS = np.uint64(0xFFFF_FFFF)
_32 = np.uint64(32)

Words = NDArray[np.uint64]


def philox4x32(counter: Words, key: Words) -> Words:
    """The four output words of each pair of counter and key, 10 rounds.

    counter: uint64 [4, n], key: uint64 [2, n], both holding 32-bit words, least significant word first.
    Returns uint64 [4, n] of 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_2 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product_2 >> _32) ^ c1 ^ k0,
            product_2 & _LOW_32_BITS,
            (product_0 >> _32) ^ c3 ^ k1,
            product_0 & _LOW_32_BITS,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW_32_BITS, (k1 + _WEYL[1]) & _LOW_32_BITS
    return np.stack((c0, c1, c2, c3))


def words(seeds: Sequence[int], indices: Sequence[int]) -> NDArray[np.int32]:
    """Two random 32-bit words for each pair (64-bit seed, token index): int32 [n, 2]."""
    seed, index = np.array(seeds, dtype=np.uint64), np.array(indices, dtype=np.uint64)
    unused = np.zeros_like(index)
    counter = np.stack((index & _LOW_32_BITS, index >> _32, unused, unused))
    drawn = philox4x32(counter, np.stack((seed & _LOW_32_BITS, seed >> _32)))
    return np.ascontiguousarray(drawn[:2].T).astype(np.uint32).view(np.int32)
