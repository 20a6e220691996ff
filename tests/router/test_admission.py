"""When requests wait in the router, for how long by its reckoning, and that idle workers never lack work."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.admission import PROMPTS_AHEAD, SECONDS_AHEAD, Admission, AdmissionLimits, Capacity
from baton.router.fair_queue import Entry

ONE = Capacity(workers=1, prefill_tokens_per_s=1000.0)
_numbers = itertools.count()


def entry(tenant: str = "", tokens: int = 1000) -> Entry:
    return Entry(f"request-{next(_numbers)}", tenant, tokens, 0, 0.0)


def sent(admission: Admission, *entries: Entry, capacity: Capacity = ONE, now_s: float = 0.0) -> list[Entry]:
    for one in entries:
        admission.arrive(one)
    return admission.admit(capacity, now_s)


def saturated(limits: AdmissionLimits | None = None) -> tuple[Admission, list[Entry]]:
    admission = Admission(limits or AdmissionLimits())
    ahead = sent(admission, *(entry() for _ in range(PROMPTS_AHEAD)))
    assert len(ahead) == PROMPTS_AHEAD
    return admission, ahead


def test_an_idle_fleet_lets_everybody_in_at_once() -> None:
    admission = Admission(AdmissionLimits(max_waiting=0))
    for _ in range(PROMPTS_AHEAD):
        (admitted,) = sent(admission, entry(tokens=100_000))
        admission.placed(admitted.request_id, 100.0)
        assert admission.shed(admitted) is None


def test_requests_wait_once_every_worker_has_several_prompts_and_seconds_of_work() -> None:
    admission, ahead = saturated()
    assert sent(admission, entry()) == []
    assert len(sent(admission, capacity=Capacity(2, 1000.0))) == 1, "a worker has joined"
    assert sent(admission, entry()) == []
    admission.computed(ahead[0].request_id)
    assert sent(admission) == []
    admission.computed(ahead[1].request_id)
    assert len(sent(admission)) == 1


def test_the_prompts_of_those_that_wait_are_counted_and_no_longer_once_their_turn_has_come() -> None:
    admission, ahead = saturated()
    assert admission.waiting_tokens == 0
    sent(admission, entry("a", 300), entry("b", 50))
    assert admission.waiting_tokens == 350
    for one in ahead:
        admission.computed(one.request_id)
    assert len(sent(admission)) == 2
    assert admission.waiting_tokens == 0


def test_many_prompts_that_are_little_work_do_not_make_others_wait() -> None:
    admission, ahead = saturated()
    for one in ahead:
        admission.placed(one.request_id, 0.5 * SECONDS_AHEAD / PROMPTS_AHEAD)
    assert len(sent(admission, *(entry(tokens=1) for _ in range(100)))) == 100


def test_a_burst_is_reckoned_by_its_tokens_until_it_is_placed() -> None:
    admission = Admission(AdmissionLimits())
    assert len(sent(admission, *(entry(tokens=500) for _ in range(100)))) == PROMPTS_AHEAD


def test_without_any_worker_nobody_waits() -> None:
    admission, _ = saturated()
    assert len(sent(admission, entry(), capacity=Capacity(0, 1000.0))) == 1


def test_no_more_than_the_limit_are_at_the_workers() -> None:
    admission = Admission(AdmissionLimits(max_running=2))
    first, second = sent(admission, entry(), entry(), third := entry())
    admission.computed(first.request_id)
    assert sent(admission) == []
    admission.end(second)
    assert sent(admission) == [third]


def test_who_gives_up_or_ends_makes_room_and_is_charged_nothing_more() -> None:
    admission, ahead = saturated()
    sent(admission, waiting := entry())
    admission.end(waiting)
    assert admission.waiting == 0
    for one in ahead:
        admission.end(one)
        admission.end(one)
    assert admission.running == 0
    assert len(sent(admission, *(entry() for _ in range(50)))) == PROMPTS_AHEAD


def test_the_wait_is_predicted_from_the_pace_of_the_last_admissions() -> None:
    admission, ahead = saturated()
    for second, one in enumerate(ahead, start=1):
        sent(admission, entry(), now_s=float(second))
        admission.computed(one.request_id)
        sent(admission, now_s=float(second))
    sent(admission, *(entry() for _ in range(10)), now_s=16.0)
    pace_s = 16.0 / (2 * PROMPTS_AHEAD)
    assert admission.drain_s(16.0) == pytest.approx(10 * pace_s)
    assert admission.wait_s("", ONE, 16.0) == pytest.approx(11 * pace_s)
    assert admission.wait_s("another", ONE, 16.0) == pytest.approx(2 * pace_s), "it gets every second turn"
    assert admission.wait_s("", Capacity(0, 1.0), 16.0) > 0, "behind those who wait"


def test_an_idle_fleet_is_predicted_to_let_in_at_once() -> None:
    assert Admission(AdmissionLimits()).wait_s("", ONE, 0.0) == 0.0


@settings(max_examples=30, deadline=None)
@given(
    heavy=st.integers(2, 20),
    tokens=st.tuples(st.integers(50, 2000), st.integers(50, 2000)),
    light_is_there=st.booleans(),
)
def test_a_tenant_gets_its_share_under_overload_and_all_that_others_leave(
    heavy: int, tokens: tuple[int, int], light_is_there: bool
) -> None:
    """A worker that ends a prompt at a time; the heavy tenant has `heavy` times as many requests."""
    admission = Admission(AdmissionLimits(max_waiting=64))
    served = Counter[str]()
    at_work: list[Entry] = []
    for turn in range(400):
        tenants = ["heavy"] * heavy + ["light"] * light_is_there
        for tenant in tenants:
            one = entry(tenant, tokens[tenant == "light"])
            admission.arrive(one)
            at_work += admission.admit(ONE, float(turn))
            admission.shed(one)
        assert at_work, "a worker is never without work while somebody waits"
        ended = at_work.pop(0)
        served[ended.tenant] += ended.prompt_tokens * (turn >= 50)
        admission.end(ended)
        at_work += admission.admit(ONE, float(turn))
    if light_is_there:
        demand = 350 * tokens[1]
        assert served["light"] >= min(served["heavy"], 0.9 * demand) - PROMPTS_AHEAD * max(tokens)
    else:
        assert served["heavy"] == 350 * tokens[0]
