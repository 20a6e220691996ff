"""What a worker's steps and hand-offs take in turn, about what its profile says that they take."""

from __future__ import annotations

from functools import lru_cache
from math import erf, exp, log, sqrt
from random import Random

_LARGEST = 2.0
"""Times what is expected: beyond it, as far as a worker's own fit is concerned, all takes as long
(`baton.worker.term_fit`)."""

_HALVINGS = 40


def drawn_s(usual_s: float, sigma: float, random: Random) -> float:
    """Log-normal, and such that a worker that takes these times would report `usual_s`. sigma: standard deviation
    of the logarithm."""
    return usual_s * exp(random.gauss(_location(sigma), sigma)) if sigma else usual_s


@lru_cache(maxsize=1024)
def _location(sigma: float) -> float:
    """Mean of the logarithm of what spreads by `sigma` about 1: of all locations that for which
    E[min(x, _LARGEST)] = 1, Huber's condition (1964) for relative errors, found by halving."""
    low, high = -sigma * sigma - sigma, 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _limited_mean(middle, sigma) > 1:
            high = middle
        else:
            low = middle
    return low


def _limited_mean(location: float, sigma: float) -> float:
    """Of a log-normal figure, with _LARGEST in place of what is larger."""
    at = (log(_LARGEST) - location) / sigma
    mean = exp(location + sigma * sigma / 2)
    return mean * _normal(at - sigma) + _LARGEST * (1 - _normal(at))


def _normal(x: float) -> float:
    """The standard normal distribution function."""
    return (1 + erf(x / sqrt(2))) / 2
