"""Times that spread as a profile says: a worker that took them would report that profile."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from baton.sim.spread import drawn_s
from baton.worker.term_fit import TermFit

USUAL_S = 0.004
DRAWS = 20_000


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8, 1.2])
def test_a_worker_would_report_what_its_times_were_drawn_from(sigma: float) -> None:
    random = Random(1)
    fit = TermFit([2 * USUAL_S], [1], memory_s=DRAWS * USUAL_S)
    for _ in range(DRAWS):
        fit.note([1], drawn_s(USUAL_S, sigma, random))
    assert fit.terms[0] == pytest.approx(USUAL_S, rel=0.05)
    assert fit.spread == pytest.approx(sigma, rel=0.1)


def test_small_spreads_keep_the_mean() -> None:
    random = Random(1)
    drawn = [drawn_s(USUAL_S, 0.2, random) for _ in range(DRAWS)]
    assert np.mean(drawn) == pytest.approx(USUAL_S, rel=0.01)


def test_without_spread_all_takes_what_it_usually_takes() -> None:
    assert drawn_s(USUAL_S, 0.0, Random(1)) == USUAL_S
