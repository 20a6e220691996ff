"""Whose request is next: shares by tokens served, priorities that age, and who gives way in a full queue."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.router.fair_queue import (
    INPUT_WEIGHT,
    MAX_IDLE_TENANTS,
    OUTPUT_WEIGHT,
    PRIORITY_STEP_S,
    Entry,
    FairQueue,
)

_numbers = itertools.count()


def entry(tenant: str = "", tokens: int = 10, priority: int = 0, arrived_at_s: float = 0.0) -> Entry:
    return Entry(f"request-{next(_numbers)}", tenant, tokens, priority, arrived_at_s)


def queue_of(*entries: Entry) -> FairQueue:
    queue = FairQueue()
    for one in entries:
        queue.add(one)
    return queue


def taken(queue: FairQueue) -> list[Entry]:
    return [queue.take() for _ in range(len(queue))]


def test_one_tenant_is_served_in_order_of_arrival() -> None:
    entries = [entry(arrived_at_s=at_s) for at_s in range(5)]
    assert taken(queue_of(*entries)) == entries


def test_a_lower_priority_value_goes_first() -> None:
    late, urgent = entry(priority=1), entry(priority=-1, arrived_at_s=1.0)
    assert taken(queue_of(late, urgent)) == [urgent, late]


def test_a_level_of_priority_is_worth_a_bounded_wait() -> None:
    background = entry(priority=3)
    before = entry(arrived_at_s=3 * PRIORITY_STEP_S - 1)
    after = entry(arrived_at_s=3 * PRIORITY_STEP_S + 1)
    assert taken(queue_of(background, before, after)) == [before, background, after]


def test_a_tenant_orders_only_its_own_requests_by_priority() -> None:
    pushy = [entry("pushy", priority=-100) for _ in range(4)]
    modest = [entry("modest") for _ in range(4)]
    order = taken(queue_of(*pushy, *modest))
    assert Counter(one.tenant for one in order[:4]) == {"pushy": 2, "modest": 2}


def test_tenants_share_by_tokens_not_by_requests() -> None:
    long = [entry("long", tokens=100) for _ in range(30)]
    short = [entry("short", tokens=10) for _ in range(300)]
    order = taken(queue_of(*long, *short))[:110]
    tokens = Counter[str]()
    for one in order:
        tokens[one.tenant] += one.prompt_tokens
    assert abs(tokens["long"] - tokens["short"]) <= 100


def test_the_tokens_of_answers_count_double() -> None:
    queue = queue_of(*(entry(tenant, tokens=1) for tenant in "ab" * 30))
    assert queue.take().tenant == "a"
    queue.charge_output("a", 10)
    assert [queue.take().tenant for _ in range(int(1 + 10 * OUTPUT_WEIGHT))] == ["b"] * 21


def test_a_tenant_that_comes_back_has_saved_nothing_up() -> None:
    queue = queue_of(*(entry("busy", tokens=1000) for _ in range(20)))
    for _ in range(10):
        queue.take()
    for _ in range(10):
        queue.add(entry("returned", tokens=1000))
    assert Counter(queue.take().tenant for _ in range(10)) == {"busy": 5, "returned": 5}


def test_a_tenant_that_comes_to_an_empty_queue_has_saved_nothing_up_either() -> None:
    queue = queue_of(*(entry("busy", tokens=1000) for _ in range(20)))
    taken(queue)
    for tenant in ["returned", "busy"] * 10:
        queue.add(entry(tenant, tokens=1000))
    assert Counter(queue.take().tenant for _ in range(10)) == {"busy": 5, "returned": 5}


def test_a_full_queue_sheds_the_last_of_the_tenant_that_has_the_most() -> None:
    flood = [entry("flood", arrived_at_s=at_s) for at_s in range(5)]
    queue = queue_of(*flood, few := entry("few"))
    assert queue.shed("few") is flood[-1]
    assert queue.shed("flood") is flood[-2]
    assert few in taken(queue)


def test_among_equals_the_newest_gives_way() -> None:
    first, second = entry("a"), entry("b")
    queue = queue_of(first, second)
    assert queue.shed("b") is second


def test_counters_of_tenants_that_went_away_are_bounded() -> None:
    queue = FairQueue()
    for number in range(MAX_IDLE_TENANTS + 100):
        queue.add(entry(f"tenant-{number}"))
        queue.take()
    assert len(queue._idle) == MAX_IDLE_TENANTS
    queue.charge_output("tenant-0", 100)


sent = st.tuples(st.sampled_from("abc"), st.integers(1, 50), st.integers(-3, 3))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(sent, st.just("take"), st.just("remove"), st.just("shed")), max_size=60))
def test_whatever_comes_and_goes_everybody_leaves_once_and_counters_of_waiting_tenants_stay_close(
    acts: list[tuple[str, int, int] | str],
) -> None:
    queue, inside, outside = FairQueue(), list[Entry](), list[Entry]()
    for now_s, act in enumerate(acts):
        if isinstance(act, tuple):
            tenant, tokens, priority = act
            inside.append(one := entry(tenant, tokens, priority, float(now_s)))
            queue.add(one)
        elif inside:
            gone = inside[0]
            if act == "remove":
                queue.remove(gone)
            else:
                gone = queue.take() if act == "take" else queue.shed("a")
            inside.remove(gone)
            outside.append(gone)
        assert len(queue) == len(inside)
        served = [tenant.served_tokens for tenant in queue._waiting.values()]
        assert not served or max(served) - min(served) <= 50 * INPUT_WEIGHT
    assert sorted(map(id, taken(queue))) == sorted(map(id, inside))
    assert len(set(map(id, inside + outside))) == len(inside) + len(outside)
