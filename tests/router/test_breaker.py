"""The circuit breaker counts faults of the worker alone, and lets one probe at a time through."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    HandoffFailed,
    InvalidRequest,
    Overloaded,
    QueueTimeout,
    Unavailable,
    WorkerFailed,
)
from baton.router.breaker import FAULTS, FIRST_REST_S, MAX_REST_S, Breaker, Standing
from baton.router.breaker_metrics import BreakerCollector
from baton.router.metrics import RouterMetrics

FAULT = WorkerFailed("fault")


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAULTS):
        breaker.begin()
        breaker.fail(FAULT)
    return breaker


@pytest.mark.parametrize("kind", [WorkerFailed, HandoffFailed, Unavailable])
def test_faults_in_a_row_open_it(kind: type[BatonError]) -> None:
    breaker = Breaker(Clock())
    for _ in range(FAULTS):
        assert breaker.allows()
        breaker.fail(kind("fault"))
    assert not breaker.allows()


@pytest.mark.parametrize("kind", [InvalidRequest, Overloaded, Cancelled, DeadlineExceeded, QueueTimeout])
def test_what_is_no_fault_of_the_worker_never_opens_it(kind: type[BatonError]) -> None:
    breaker = Breaker(Clock())
    for _ in range(10 * FAULTS):
        breaker.fail(kind("not the worker's"))
    assert breaker.allows()


def test_a_success_between_faults_keeps_it_closed() -> None:
    breaker = Breaker(Clock())
    for _ in range(10):
        for _ in range(FAULTS - 1):
            breaker.fail(FAULT)
        breaker.succeed()
    assert breaker.allows()


def test_after_the_rest_one_probe_goes_and_closes_it_by_success() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += FIRST_REST_S
    assert breaker.allows()
    breaker.begin()
    assert not breaker.allows(), "one probe at a time"
    breaker.succeed()
    assert breaker.allows()
    assert breaker.is_closed


def test_a_probe_of_which_nothing_is_heard_is_followed_by_another() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now_s += FIRST_REST_S
    breaker.begin()
    clock.now_s += FIRST_REST_S
    assert breaker.allows()


def test_each_failed_probe_doubles_the_rest_up_to_the_limit() -> None:
    clock = Clock()
    breaker = opened(clock)
    rest_s = FIRST_REST_S
    for _ in range(10):
        clock.now_s += rest_s * 0.99
        assert not breaker.allows()
        clock.now_s += rest_s * 0.02
        assert breaker.allows()
        breaker.begin()
        breaker.fail(FAULT)
        rest_s = min(2 * rest_s, MAX_REST_S)


def test_a_crowd_that_fails_at_once_costs_one_rest() -> None:
    clock = Clock()
    breaker = opened(clock)
    for _ in range(100):
        breaker.fail(FAULT)
    clock.now_s += FIRST_REST_S
    assert breaker.allows()


@given(st.lists(st.sampled_from(["begin", "succeed", "fail", "wait"]), max_size=200))
def test_whatever_happens_a_probe_is_allowed_within_the_longest_rest(happenings: Sequence[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for happening in happenings:
        if happening == "wait":
            clock.now_s += FIRST_REST_S
        elif happening == "fail":
            breaker.fail(FAULT)
        else:
            getattr(breaker, happening)()
    clock.now_s += MAX_REST_S
    assert breaker.allows()


def test_it_tells_where_it_stands() -> None:
    clock = Clock()
    breaker = opened(clock)
    told = [breaker.standing]
    clock.now_s += FIRST_REST_S
    told.append(breaker.standing)
    breaker.begin()
    told.append(breaker.standing)
    breaker.succeed()
    told.append(breaker.standing)
    assert told == [Standing.OPEN, Standing.HALF_OPEN, Standing.HALF_OPEN, Standing.CLOSED]


def test_metrics_show_the_standing_of_every_worker() -> None:
    standings = {"d0": Standing.OPEN, "p0": Standing.CLOSED}
    shown = RouterMetrics(list, lambda: "m", BreakerCollector(lambda: standings)).text().decode()
    for worker_id, standing in standings.items():
        for state in Standing:
            value = float(state is standing)
            assert f'baton_worker_breaker{{state="{state.value}",worker="{worker_id}"}} {value}' in shown
