"""How many workers the planner wants. The fleet here computes what it is asked, and obeys, late."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import Role, WorkerProfile
from baton.router.planner.actions import Action, Flip, Start, Stop
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import Bounds, PlannerRules, Window
from baton.router.planner.scale_history import START_TIMEOUT_S, ScaleHistory

P, D = Role.PREFILL, Role.DECODE
TICK_S = 2.0
PROFILE = WorkerProfile(10_000.0, 0.02, 1e10, 0.0, 0.0002, 0.0)
ONE_PREFILL = 8500.0
"""Prompt tokens/s at which a prefill worker of PROFILE is under pressure 1."""
ONE_DECODE = 3900.0
"""Tokens/s of a decode worker, the same."""
MOST_RUNNING = 1000.0
RULES = PlannerRules(workers=Bounds(2, 8), cooldown_s=30.0, scale_in_after_s=60.0)


@dataclass
class Obedient:
    """Workers that are started come `start_s` later, those that are stopped go `stop_s` later. history: of the
    router that leads; follower: of one that only watches."""

    prefill: int
    decode: int
    rules: PlannerRules = RULES
    start_s: float = 20.0
    stop_s: float = 5.0
    now_s: float = 0.0
    busy_s: float = 0.0
    actions: list[tuple[float, Action]] = field(default_factory=list)
    coming: list[tuple[float, Role]] = field(default_factory=list)
    going: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.roles = {f"p{n}": P for n in range(self.prefill)} | {f"d{n}": D for n in range(self.decode)}
        self.history, self.follower = (History(self.rules.window_s, self.rules.cooldown_s) for _ in range(2))

    def count(self, role: Role) -> int:
        return sum(own is role for own in self.roles.values())

    def run(self, seconds: float, prompts: float, outputs: float) -> list[Action]:
        """prompts, outputs: asked of the pools, in what one worker of each bears."""
        before = len(self.actions)
        for _ in range(int(seconds / TICK_S)):
            self.tick(prompts, outputs)
        return [action for _, action in self.actions[before:]]

    def tick(self, prompts: float, outputs: float) -> None:
        self.now_s += TICK_S
        for at_s, role in [order for order in self.coming if order[0] <= self.now_s]:
            self.roles[f"n{len(self.roles)}-{self.now_s:g}-{len(self.coming)}"] = role
            self.coming.remove((at_s, role))
        for worker_id in [worker_id for worker_id, at_s in self.going.items() if at_s <= self.now_s]:
            del self.roles[worker_id], self.going[worker_id]
        share = prompts * ONE_PREFILL / max(1, self.count(P)) / PROFILE.prefill_rate
        self.busy_s += TICK_S * min(1.0, share)
        running = sequences(outputs * ONE_DECODE / max(1, self.count(D)))
        statuses = tuple(self.status(worker_id, role, running) for worker_id, role in self.roles.items())
        for history in (self.history, self.follower):
            history.observe(Observation(self.now_s, statuses, self.now_s % 86400))
        plan = decide(self.history, self.rules, self.now_s)
        if plan.needed_workers:
            self.history.scale.note_needed(self.now_s, plan.needed_workers, self.rules.scale_in_after_s)
        for action in plan.actions:
            self.obey(action)

    def status(self, worker_id: str, role: Role, running: int) -> WorkerStatus:
        is_ready = worker_id not in self.going
        busy_s = self.busy_s if role is P else 0.0
        running = running if role is D else 0
        held_tokens = 100 * running
        return WorkerStatus(
            worker_id,
            role,
            is_ready,
            PROFILE,
            0,
            busy_s,
            running,
            0,
            held_tokens,
            held_tokens,
            kv_tokens=1_000_000,
        )

    def obey(self, action: Action) -> None:
        self.actions.append((self.now_s, action))
        if isinstance(action, Flip):
            self.history.flip_ordered(action.worker_id, action.role, self.now_s)
            self.roles[action.worker_id] = action.role
        elif isinstance(action, Start):
            self.history.scale.start_ordered(action.workers, self.now_s)
            missing = action.workers - len(self.roles) - len(self.coming)
            self.coming += [(self.now_s + self.start_s, action.role)] * missing
        else:
            self.history.scale.stop_ordered(action.worker_id, self.now_s)
            self.going[action.worker_id] = self.now_s + self.stop_s


def sequences(tokens_per_s: float) -> int:
    """That run where one worker is asked for so much; where it is too much, they pile up."""
    spare = 1 - tokens_per_s * PROFILE.decode_s_per_sequence
    base_s = PROFILE.decode_step_s - PROFILE.decode_s_per_sequence
    return int(min(MOST_RUNNING, tokens_per_s * base_s / spare if spare > 0 else MOST_RUNNING))


def test_a_load_that_no_split_bears_starts_workers_until_one_does_and_then_no_more() -> None:
    fleet = Obedient(1, 1)
    actions = fleet.run(200.0, 1.0, 2.1)
    assert [action for action in actions if isinstance(action, Start)]
    assert (fleet.count(P), fleet.count(D)) == (2, 3)
    assert fleet.run(200.0, 1.0, 2.1) == []


def test_what_a_role_change_mends_starts_nobody() -> None:
    fleet = Obedient(4, 1)
    actions = fleet.run(40.0, 0.5, 1.5)
    assert actions
    assert all(isinstance(action, Flip) for action in actions)


def test_workers_that_are_not_needed_leave_one_after_the_other_down_to_the_fewest() -> None:
    fleet = Obedient(3, 4)
    stops = fleet.run(600.0, 0.1, 0.1)
    assert [type(action) for action in stops] == [Stop] * 5
    times_s = [at_s for at_s, _ in fleet.actions]
    assert all(later - earlier >= RULES.scale_in_after_s for earlier, later in pairwise(times_s))
    assert (fleet.count(P), fleet.count(D)) == (1, 1)


def test_a_lull_ends_nobody() -> None:
    fleet = Obedient(2, 2)
    for _ in range(4):
        assert fleet.run(40.0, 1.5, 1.5) == []
        assert fleet.run(40.0, 0.1, 0.1) == []


def test_an_order_is_given_once_while_workers_load_and_again_when_they_never_come() -> None:
    fleet = Obedient(1, 1, start_s=1e9)
    first = fleet.run(START_TIMEOUT_S / 2, 2, 2)
    assert [type(action) for action in first] == [Start]
    assert fleet.run(START_TIMEOUT_S, 2, 2) == first


def test_the_hour_s_budget_of_orders_holds() -> None:
    fleet = Obedient(4, 4, replace(RULES, scales_per_hour=2))
    assert len(fleet.run(1200.0, 0.1, 0.1)) == 2


def test_an_order_that_nobody_takes_is_given_again_after_a_pause_and_costs_no_budget() -> None:
    fleet = Obedient(1, 1, replace(RULES, scales_per_hour=1), start_s=1e9)
    assert len(fleet.run(40.0, 2.0, 2.0)) == 1
    fleet.history.scale.refused(fleet.now_s)
    assert fleet.run(28.0, 2.0, 2.0) == []
    assert [type(action) for action in fleet.run(6.0, 2.0, 2.0)] == [Start]


@pytest.mark.parametrize(("load", "orders"), [(0.1, 2), (4.0, 1)])
def test_a_new_leader_has_no_more_left_of_the_hour_s_budget_than_its_predecessor(
    load: float, orders: int
) -> None:
    fleet = Obedient(3, 3, replace(RULES, scales_per_hour=orders))
    ordered = [action for action in fleet.run(400.0, load, load) if not isinstance(action, Flip)]
    assert len(ordered) == orders
    fleet.history, fleet.follower = fleet.follower, fleet.history
    assert not any(isinstance(action, Stop) for action in fleet.run(600.0, 0.1, 0.1))


@pytest.mark.parametrize("away_s", [20, 90, 240])
def test_who_dies_and_comes_back_costs_no_budget_and_keeps_nobody(away_s: int) -> None:
    history = ScaleHistory()
    for at_s in range(3000):
        present = ("w0", "w1") if at_s % 300 < away_s and at_s > 300 else ("w0", "w1", "w2")
        history.observe(present, len(present), float(at_s))
        history.note_needed(float(at_s), 2, 250.0)
        assert len(present) < 3 or history.orders_since(0.0) == 0
    assert history.most_needed(2750.0) == 2


def test_who_dies_for_good_leaves_as_if_it_had_been_ordered() -> None:
    history = ScaleHistory()
    for at_s in range(2000):
        history.observe(("w0", "w1") if at_s > 100 else ("w0", "w1", "w2"), 2, float(at_s))
    assert history.orders_since(0.0) == 1


def test_an_order_whose_workers_come_one_after_the_other_is_one_order() -> None:
    leader, follower = ScaleHistory(), ScaleHistory()
    for at_s in range(400):
        present = [f"w{n}" for n in range(3 + sum(at_s > 100 + 40 * n for n in range(3)))]
        for history in (leader, follower):
            history.observe(present, len(present), float(at_s))
        if at_s == 100:
            leader.start_ordered(6, 100.0)
    assert leader.orders_since(0.0) == 1
    assert follower.orders_since(0.0) >= 1


def test_an_own_order_to_stop_counts_once_however_long_the_worker_takes() -> None:
    history = ScaleHistory()
    for at_s in range(1000):
        history.observe(("w0", "w1") if at_s > 400 else ("w0", "w1", "w2"), 2, float(at_s))
        if at_s == 100:
            history.stop_ordered("w2", 100.0)
    assert history.orders_since(0.0) == 1


def test_an_own_order_that_was_refused_hides_no_other_leader_s() -> None:
    history = ScaleHistory()
    for at_s in range(400):
        present = ("w0", "w1", "w2") if at_s >= 200 else ("w0", "w1")
        history.observe(present, len(present), float(at_s))
        if at_s == 100:
            history.start_ordered(3, 100.0)
            history.refused(101.0)
    assert history.orders_since(0.0) == 1


def test_a_planner_that_stood_still_for_long_counts_anew() -> None:
    fleet = Obedient(4, 4)
    fleet.run(40.0, 0.1, 0.1)
    fleet.now_s += 10 * RULES.scale_in_after_s
    assert fleet.run(RULES.scale_in_after_s - TICK_S, 0.1, 0.1) == []
    assert [type(action) for action in fleet.run(4 * TICK_S, 0.1, 0.1)] == [Stop]


def test_a_worker_that_leaves_stands_for_none_that_is_to_come() -> None:
    history = ScaleHistory()
    history.start_ordered(4, 0.0)
    history.observe(("w0", "w1", "w2", "leaving"), ready=3, at_s=2.0)
    assert history.ordered_workers(2.0) == 4
    history.observe(("w0", "w1", "w2", "w3", "leaving"), ready=4, at_s=4.0)
    assert history.ordered_workers(4.0) == 0


@pytest.mark.parametrize(("day_s", "workers"), [(12 * 3600.0, 2), (23 * 3600.0, 5), (3600.0, 5)])
def test_a_window_sets_how_many_there_are_at_a_time_of_day(day_s: float, workers: int) -> None:
    night = Window(22 * 3600.0, 6 * 3600.0, workers=Bounds(5, 6))
    fleet = Obedient(1, 1, replace(RULES, windows=(night,)))
    fleet.now_s = day_s
    fleet.run(100.0, 0.1, 0.1)
    assert len(fleet.roles) == workers


def test_a_window_that_ends_sends_those_above_the_limit_home_at_once() -> None:
    fleet = Obedient(3, 3, replace(RULES, workers=Bounds(2, 4)))
    stops = fleet.run(60.0, 1.5, 1.5)
    assert [type(action) for action in stops] == [Stop, Stop]
    assert (fleet.count(P), fleet.count(D)) == (2, 2)


@settings(deadline=None, max_examples=25)
@given(
    loads=st.lists(st.tuples(st.floats(0, 6), st.floats(0, 6)), min_size=1, max_size=5),
    prefill=st.integers(1, 3),
    decode=st.integers(1, 3),
)
def test_no_load_whatever_makes_more_workers_than_allowed_or_fewer(
    loads: list[tuple[float, float]], prefill: int, decode: int
) -> None:
    fleet = Obedient(prefill, decode)
    for prompts, sequences in loads:
        for _ in range(40):
            fleet.tick(prompts, sequences)
            assert len(fleet.roles) + len(fleet.coming) <= 8
            assert len(fleet.roles) - len(fleet.going) >= 2
            assert fleet.count(P) >= 1
            assert fleet.count(D) - sum(worker_id.startswith("d") for worker_id in fleet.going) >= 1
