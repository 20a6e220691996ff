"""Philox4x32-10 against the published known answers and an obvious scalar form of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.engine.philox import philox4x32, words

SEEDS = st.integers(0, 2**64 - 1)
INDICES = st.integers(0, 2**40)


def scalar_philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """One block in Python integers, as figure 2 and section 3 of the paper describe it."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c0, 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    def parsed(text: str) -> np.typing.NDArray[np.uint64]:
        return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)

    assert philox4x32(parsed(counter), parsed(key)).tolist() == parsed(expected).tolist()


@given(st.lists(st.tuples(SEEDS, INDICES), min_size=1, max_size=8))
def test_every_lane_is_the_scalar_generator(pairs: list[tuple[int, int]]) -> None:
    drawn = words([seed for seed, _ in pairs], [index for _, index in pairs])
    for row, (seed, index) in zip(drawn.tolist(), pairs, strict=True):
        expected = scalar_philox4x32_10([index % 2**32, index >> 32, 0, 0], [seed % 2**32, seed >> 32])
        assert [word % 2**32 for word in row] == expected[:2]


def test_neighbouring_seeds_and_indices_are_uncorrelated_and_uniform() -> None:
    count = 20_000
    by_index = words([7] * count, range(count))
    by_seed = words(range(count), [7] * count)
    for column in (*by_index.T, *by_seed.T):
        histogram, _ = np.histogram(column, bins=100, range=(-(2**31), 2**31))
        chi_square = float(((histogram - count / 100) ** 2 / (count / 100)).sum())
        assert chi_square < 148.2  # the 99.9 % quantile at 99 degrees of freedom
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 4 / count**0.5
