"""The race against a scalar form of its clock, the distribution that it draws from, and its calm under rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine import philox, race

torch.set_num_threads(1)

WORDS = st.integers(-(2**31), 2**31 - 1)


def scalar_exponential(keys: tuple[int, int], position: int) -> float:
    """One arrival time in Python integers."""

    def scrambled(x: int) -> int:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    first, second = (key % 2**32 for key in keys)
    word = scrambled(scrambled(position ^ first) ^ second) % 2**31
    uniform = (np.float32(word) + np.float32(0.5)) * np.float32(2**-31)
    return -math.log1p(-min(float(uniform), 1 - 2**-24))


def keys_of(count: int, index: int = 3) -> torch.Tensor:
    return torch.from_numpy(philox.words(range(count), [index] * count))


@settings(deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(1, 300))
def test_every_lane_is_the_scalar_clock(keys: list[tuple[int, int]], width: int) -> None:
    times = race.exponentials(torch.tensor(keys, dtype=torch.int32), width)
    expected = [[scalar_exponential(pair, position) for position in range(width)] for pair in keys]
    assert times.dtype == torch.float32
    torch.testing.assert_close(times, torch.tensor(expected), rtol=1e-5, atol=0)
    assert (times > 0).all()
    assert times.isfinite().all()


@pytest.mark.parametrize("axis", ["positions", "seeds", "indices"])
def test_times_are_exponential_and_uncorrelated_along_every_axis(axis: str) -> None:
    count = 20_000
    if axis == "positions":
        times = race.exponentials(keys_of(1), count)[0]
    elif axis == "seeds":
        times = race.exponentials(keys_of(count), 8)[:, 5]
    else:
        keys = torch.from_numpy(philox.words([9] * count, range(count)))
        times = race.exponentials(keys, 8)[:, 5]
    uniforms = np.exp(-times.double().numpy())
    histogram, _ = np.histogram(uniforms, bins=100, range=(0, 1))
    chi_square = float(((histogram - count / 100) ** 2 / (count / 100)).sum())
    assert chi_square < 148.2  # the 99.9 % quantile at 99 degrees of freedom
    assert abs(np.corrcoef(uniforms[:-1], uniforms[1:])[0, 1]) < 4 / count**0.5


def test_winners_are_as_frequent_as_their_weights_and_zero_never_wins() -> None:
    count = 40_000
    weights = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.25, 1e-3, 0.05])
    winners = race.first(weights.repeat(count, 1), keys_of(count))
    observed = torch.bincount(winners, minlength=len(weights))
    expected = weights / weights.sum() * count
    assert observed[weights == 0].sum() == 0
    likely = weights > 0
    chi_square = ((observed - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 18.5  # the 99.9 % quantile at 4 degrees of freedom


def test_a_rounding_of_the_weights_leaves_the_winners_alone() -> None:
    """Each weight is off by up to 4e-6, and of 3000 tokens the least likely has been cut off: inverting the
    distribution function at one number would change a large share of the draws."""
    rows, width = 2000, 3000
    generator = torch.Generator().manual_seed(1)
    weights = 0.5 + torch.rand(rows, width, generator=generator)
    noisy = weights * (1 + (torch.rand(rows, width, generator=generator) - 0.5) * 8e-6)
    noisy.scatter_(1, weights.argmin(-1, keepdim=True), 0.0)
    is_same = race.first(weights, keys_of(rows)) == race.first(noisy, keys_of(rows))
    assert (~is_same).sum() <= 2
