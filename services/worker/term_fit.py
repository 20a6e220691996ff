"""Seconds as a sum of amounts times terms, the terms fitted to what is observed.

Least squares of relative errors, recursive with exponential forgetting (Ljung: "System Identification", 11.2),
drawn towards a prior: where observations do not tell two terms apart, the prior does, so no term runs away. Terms
are never negative. An observation far off its expectation counts less (Huber, 1964).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_PRIOR_WEIGHT = 0.05
"""Of the prior, against 1 of each observation that is remembered."""

_OUTLIER = 1.0
"""Relative error from which on an observation's weight falls."""

_LEAST_SHARE = 0.05
"""Of what the prior expects: the scale of a term of which it says nothing, and the least that an error is relative
to."""

_SOLVE_EVERY = 8

Vector = npt.NDArray[np.float64]


class TermFit:
    """`note` on one thread; `terms` may be read on any."""

    def __init__(self, prior: Sequence[float], typical: Sequence[float], memory_s: float) -> None:
        """prior: the terms before anything is noted, not all 0. typical: amounts of a usual observation.
        memory_s: an observation counts 1/e once those that followed it were expected to take so long together."""
        self.terms = tuple(prior)
        self._memory_s = memory_s
        amounts = np.array(typical, np.float64)
        typical_s = float(amounts @ self.terms)
        assert typical_s > 0, f"the prior {prior} expects 0 s of {typical}"
        self._scales = np.maximum(self.terms, _LEAST_SHARE * typical_s / amounts)
        self._prior = np.array(self.terms) / self._scales
        self._moments = np.zeros((len(prior), len(prior)))
        self._projections = np.zeros(len(prior))
        self._noted = 0
        self._logarithms = np.zeros(3)

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm of what was observed, over what was expected of it at the time."""
        weight, total, squares = self._logarithms.tolist()
        return math.sqrt(max(0.0, squares / weight - (total / weight) ** 2)) if weight else 0.0

    def note(self, amounts: Sequence[float], seconds: float) -> None:
        """What took no time, or had nothing to take any, is passed over."""
        expected_s = sum(term * amount for term, amount in zip(self.terms, amounts, strict=True))
        row = self._scales * amounts
        usual_s = max(expected_s, _LEAST_SHARE * float(row.sum()))
        if seconds <= 0 or not usual_s:
            return
        row /= usual_s
        weight = usual_s / max(usual_s, abs(seconds - expected_s) / _OUTLIER)
        forgetting = math.exp(-usual_s / self._memory_s)
        self._moments = forgetting * self._moments + weight * np.outer(row, row)
        self._projections = forgetting * self._projections + weight * seconds / usual_s * row
        powers = math.log(seconds / usual_s) ** np.arange(3)  # weighted by time, as the queues behind are
        self._logarithms = forgetting * self._logarithms + usual_s * powers
        self._noted += 1
        if self._noted % _SOLVE_EVERY == 0:
            solved = nonnegative_solution(
                self._moments + _PRIOR_WEIGHT * np.eye(len(self._prior)),
                self._projections + _PRIOR_WEIGHT * self._prior,
            )
            self.terms = tuple((solved * self._scales).tolist())


def nonnegative_solution(moments: Vector, projections: Vector) -> Vector:
    """The solution of `moments` x = `projections` with what would be negative left out and 0, the most negative
    first. moments: [n, n], symmetric, positive definite. projections: [n]."""
    solution = np.zeros(len(projections))
    kept = np.arange(len(projections))
    while len(kept):
        values = np.linalg.solve(moments[np.ix_(kept, kept)], projections[kept])
        if values.min() >= 0:
            solution[kept] = values
            break
        kept = np.delete(kept, values.argmin())
    return solution
