"""When a dead process starts again: properties of the decision over any history of ends."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.cli.supervision import FIRST_DELAY_S, MAX_DELAY_S, RestartLimits, delay_after_end

gaps_s = st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=30)
draws = st.floats(0.0, 1.0, exclude_max=True)
limits = st.builds(RestartLimits, st.integers(0, 20), st.floats(0.1, 1000.0))


def test_the_first_restart_is_prompt_and_each_further_one_waits_twice_as_long() -> None:
    ends_s = [100.0, 101.0, 102.0, 103.0]
    delays_s = [delay_after_end(ends_s[: count + 1], RestartLimits(), 0.0) for count in range(4)]
    assert delays_s == [FIRST_DELAY_S * factor for factor in (1, 2, 4, 8)]


def test_a_process_that_dies_too_often_is_given_up_and_not_before() -> None:
    limits = RestartLimits(max_restarts=3, window_s=60.0)
    ends_s = [0.0, 10.0, 20.0, 30.0]
    assert delay_after_end(ends_s[:3], limits, 0.0) is not None
    assert delay_after_end(ends_s, limits, 0.0) is None


def test_without_restarts_the_first_end_is_the_last() -> None:
    assert delay_after_end([5.0], RestartLimits(max_restarts=0), 0.0) is None


@given(gaps_s, limits, draws)
def test_a_process_that_lived_for_the_window_is_as_good_as_new(
    gaps_s: list[float], limits: RestartLimits, draw: float
) -> None:
    ends_s = list(accumulate(gaps_s))
    ends_s.append(ends_s[-1] + limits.window_s + 1.0)
    assert delay_after_end(ends_s, limits, draw) == delay_after_end(ends_s[-1:], limits, draw)


@given(gaps_s, limits, draws)
def test_every_delay_is_positive_bounded_and_scattered_by_half_at_most(
    gaps_s: list[float], limits: RestartLimits, draw: float
) -> None:
    ends_s = list(accumulate(gaps_s))
    delay_s, whole_s = delay_after_end(ends_s, limits, draw), delay_after_end(ends_s, limits, 0.0)
    if whole_s is None:
        assert delay_s is None
    else:
        assert delay_s is not None
        assert FIRST_DELAY_S <= whole_s <= MAX_DELAY_S
        assert delay_s == pytest.approx(whole_s * (1 - draw / 2))


@given(gaps_s, limits)
def test_starts_within_any_window_never_exceed_the_limit(gaps_s: list[float], limits: RestartLimits) -> None:
    """Played forward, a process that dies as soon as it has started is started `max_restarts` times."""
    ends_s, now_s = [0.0], 0.0
    for gap_s in gaps_s:
        delay_s = delay_after_end(ends_s, limits, 0.0)
        if delay_s is None:
            break
        now_s += delay_s + gap_s
        ends_s.append(now_s)
    for last_s in ends_s:
        in_window = [at_s for at_s in ends_s if last_s - limits.window_s < at_s <= last_s]
        assert len(in_window) <= limits.max_restarts + 1
