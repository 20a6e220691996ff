"""What the planner promises whatever it sees, and what it does about traffic that can be told in advance. The fleet
here is a fluid: demand flows to the ready workers of a pool in equal parts, and what they cannot do piles up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import Role, WorkerProfile
from baton.router.planner.actions import Flip, Plan
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rescue import decide_unplanned
from baton.router.planner.rules import Bounds, PlannerRules, Window
from baton.router.planner.scale_history import HOUR_S

P, D = Role.PREFILL, Role.DECODE
TICK_S = 2.0
PROFILE = WorkerProfile(10_000.0, 0.02, 1e10, 0.0, 0.0002, 0.0)
ONE_WORKER = 8500.0
"""Prompt tokens/s at which a prefill worker of PROFILE is under pressure 1."""
ONE_DECODE_WORKER = 351
"""Sequences on a decode worker of PROFILE under pressure 1."""
RULES = PlannerRules()
Decide = Callable[[History, PlannerRules, float], Plan]


def flips_of(plan: Plan) -> list[Flip]:
    """All that a planner does which does not count workers."""
    flips = [action for action in plan.actions if isinstance(action, Flip)]
    assert len(flips) == len(plan.actions)
    return flips


@dataclass
class Fluid:
    """prefill, decode: workers at the start. Flips take `flip_s`, for which the worker is not ready."""

    prefill: int
    decode: int
    rules: PlannerRules = RULES
    flip_s: float = 1.0
    decide: Decide = decide
    profiles: dict[str, WorkerProfile] = field(default_factory=dict)
    now_s: float = 0.0
    plans: list[tuple[float, Plan]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.roles = {f"p{n}": P for n in range(self.prefill)} | {f"d{n}": D for n in range(self.decode)}
        self.busy_s = dict.fromkeys(self.roles, 0.0)
        self.backlog_tokens = 0.0
        self.ready_at_s: dict[str, tuple[float, Role]] = {}
        self.history = History(self.rules.window_s, self.rules.cooldown_s)

    def count(self, role: Role) -> int:
        return sum(own is role for own in self.roles.values())

    def run(self, seconds: float, prompt_tokens_per_s: float, sequences: float) -> list[Flip]:
        """`sequences` are there at any time. Returns the flips."""
        before = len(self.plans)
        for _ in range(int(seconds / TICK_S)):
            self.tick(prompt_tokens_per_s, sequences)
        return [flip for _, plan in self.plans[before:] for flip in flips_of(plan)]

    def tick(self, prompt_tokens_per_s: float, sequences: float) -> None:
        self.now_s += TICK_S
        for worker_id, (ready_at_s, role) in list(self.ready_at_s.items()):
            if ready_at_s <= self.now_s:
                self.roles[worker_id] = role
                del self.ready_at_s[worker_id]
        self._compute(prompt_tokens_per_s)
        statuses = tuple(self._status(worker_id, sequences) for worker_id in self.roles)
        self.history.observe(Observation(self.now_s, statuses, self.now_s % 86400))
        plan = self.decide(self.history, self.rules, self.now_s)
        self.plans.append((self.now_s, plan))
        for action in flips_of(plan):
            self.history.flip_ordered(action.worker_id, action.role, self.now_s)
            self.ready_at_s[action.worker_id] = self.now_s + self.flip_s, action.role

    def ready(self, role: Role) -> list[str]:
        return [w for w, own in self.roles.items() if own is role and w not in self.ready_at_s]

    def profile(self, worker_id: str) -> WorkerProfile:
        return self.profiles.get(worker_id, PROFILE)

    def _compute(self, prompt_tokens_per_s: float) -> None:
        self.backlog_tokens += prompt_tokens_per_s * TICK_S
        computing = self.ready(P)
        rate = sum(self.profile(worker_id).prefill_rate for worker_id in computing)
        done_tokens = min(self.backlog_tokens, rate * TICK_S)
        self.backlog_tokens -= done_tokens
        for worker_id in computing:
            self.busy_s[worker_id] += done_tokens / rate

    def _status(self, worker_id: str, sequences: float) -> WorkerStatus:
        role = self.roles[worker_id]
        pool = max(1, len(self.ready(role)))
        is_ready = worker_id not in self.ready_at_s
        queued_tokens = int(self.backlog_tokens / pool) if role is P and is_ready else 0
        running = int(sequences / pool) if role is D and is_ready else 0
        return WorkerStatus(
            worker_id,
            role,
            is_ready,
            self.profile(worker_id),
            queued_tokens,
            self.busy_s[worker_id],
            running,
            running_tokens=100 * running,
            held_tokens=100 * running,
            kv_tokens=1_000_000,
        )


def any_status(random: Random, worker_id: str, role: Role, busy_s: float) -> WorkerStatus:
    return WorkerStatus(
        worker_id,
        role,
        is_ready=random.random() < 0.8,
        profile=PROFILE,
        queued_tokens=random.choice([0, 1000, 100_000]),
        busy_s=busy_s + random.choice([0.0, 1.0, 2.0]),
        running=random.choice([0, 10, 300]),
        waiting=random.choice([0, 0, 50]),
        running_tokens=random.choice([0, 50_000]),
        held_tokens=random.choice([0, 50_000]),
        kv_tokens=random.choice([0, 100_000]),
    )


SMALL_RULES = PlannerRules(
    prefill=Bounds(1, 3), decode=Bounds(1, 3), window_s=6.0, cooldown_s=20.0, flips_per_hour=3
)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    prefill=st.integers(0, 4),
    decode=st.integers(0, 4),
    ticks=st.integers(1, 40),
    obeys=st.booleans(),
)
def test_no_load_whatever_makes_it_break_bounds_budget_or_cooldown(
    seed: int, prefill: int, decode: int, ticks: int, obeys: bool
) -> None:
    roles = {f"p{n}": P for n in range(prefill)} | {f"d{n}": D for n in range(decode)}
    random, busy_s = Random(seed), dict.fromkeys(roles, 0.0)
    history = History(SMALL_RULES.window_s, SMALL_RULES.cooldown_s)
    flips: list[tuple[float, Flip]] = []
    for tick in range(ticks):
        now_s = tick * TICK_S
        statuses = [
            any_status(random, worker_id, role, busy_s[worker_id]) for worker_id, role in roles.items()
        ]
        busy_s = {status.worker_id: status.busy_s for status in statuses}
        history.observe(Observation(now_s, tuple(statuses)))
        plan = decide(history, SMALL_RULES, now_s)
        assert plan.reason
        assert bool(plan.held_by) != bool(plan.actions)
        members = {
            role: sum(
                history.role_of(s) is role and (s.is_ready or history.is_under_way(s.worker_id))
                for s in statuses
            )
            for role in Role
        }
        is_rescue = not members[D]
        for action in flips_of(plan):
            donor = P if action.role is D else D
            if not is_rescue:
                assert members[donor] - 1 >= 1
                assert members[action.role] + 1 <= 3
                assert sum(at_s > now_s - HOUR_S for at_s, _ in flips) < SMALL_RULES.flips_per_hour
                recent = [flip for at_s, flip in flips if at_s > now_s - SMALL_RULES.cooldown_s]
                assert all(flip.role is action.role for flip in recent)
                assert action.worker_id not in {flip.worker_id for flip in recent}
            members[donor] -= 1
            members[action.role] += 1
            flips.append((now_s, action))
            history.flip_ordered(action.worker_id, action.role, now_s)
            if obeys:
                roles[action.worker_id] = action.role


@settings(deadline=None, max_examples=8)
@given(
    workers=st.integers(2, 12),
    share=st.floats(0.1, 0.9),
    prefill_pressure=st.floats(0.0, 1.3),
    sequences=st.floats(0, 1500),
)
def test_steady_traffic_settles_and_then_flips_nobody(
    workers: int, share: float, prefill_pressure: float, sequences: float
) -> None:
    prefill = min(workers - 1, max(1, round(share * workers)))
    fleet = Fluid(prefill, workers - prefill)
    tokens_per_s = prefill_pressure * ONE_WORKER * prefill
    settling = fleet.run(240.0, tokens_per_s, sequences)
    assert len({flip.role for flip in settling}) <= 1
    assert fleet.run(240.0, tokens_per_s, sequences) == []


@pytest.mark.parametrize(
    ("tokens_per_s", "sequences", "role"), [(12 * ONE_WORKER, 100.0, P), (1000.0, 3500.0, D)]
)
def test_pressure_moves_workers_towards_it(tokens_per_s: float, sequences: float, role: Role) -> None:
    fleet = Fluid(8, 8)
    flips = fleet.run(120.0, tokens_per_s, sequences)
    assert {flip.role for flip in flips} == {role}
    assert fleet.count(role) >= 11


def test_traffic_that_turns_is_followed_within_half_a_minute_and_back_after_the_cooldown() -> None:
    fleet = Fluid(8, 8, replace(RULES, cooldown_s=60.0))
    fleet.run(100.0, 5 * ONE_WORKER, 600.0)
    there = fleet.run(30.0, 11 * ONE_WORKER, 100.0)
    assert len(there) >= 3
    assert {flip.role for flip in there} == {P}
    fleet.run(70.0, 11 * ONE_WORKER, 100.0)
    back = fleet.run(60.0, 1000.0, 3500.0)
    assert len(back) >= 4
    assert {flip.role for flip in back} == {D}


@pytest.mark.parametrize("decision", [decide, decide_unplanned])
def test_the_last_decode_worker_s_death_flips_a_prefill_worker_and_only_one(decision: Decide) -> None:
    fleet = Fluid(3, 1, replace(RULES, flips_per_hour=0, rescue_after_s=2 * TICK_S), decide=decision)
    fleet.run(10.0, 100.0, 1.0)
    del fleet.roles["d0"]
    assert fleet.run(TICK_S, 100.0, 0.0) == [], "it may come back by itself"
    assert [flip.role for flip in fleet.run(TICK_S, 100.0, 0.0)] == [D]
    assert fleet.run(30.0, 100.0, 0.0) == []
    assert fleet.count(D) == 1


def after_a_rescue(cooldown_s: float) -> tuple[Fluid, Flip]:
    """The only decode worker has died, a prefill worker stands in for it, and it has just come back."""
    fleet = Fluid(2, 1, replace(RULES, cooldown_s=cooldown_s), decide=decide_unplanned)
    fleet.run(10.0, 100.0, 1.0)
    del fleet.roles["d0"]
    [stand_in] = fleet.run(10.0, 100.0, 0.0)
    fleet.roles["d0"] = D
    fleet.busy_s["d0"] = 0.0
    return fleet, stand_in


def test_without_a_planner_a_stand_in_goes_back_once_a_decode_worker_has_returned_for_good() -> None:
    fleet, stand_in = after_a_rescue(cooldown_s=40.0)
    assert fleet.run(30.0, 100.0, 1.0) == []
    assert fleet.run(10.0, 100.0, 1.0) == [Flip(stand_in.worker_id, P)]
    assert fleet.run(100.0, 100.0, 1.0) == []
    assert (fleet.count(P), fleet.count(D)) == (2, 1)


def test_a_router_that_only_watched_the_rescue_knows_who_stands_in() -> None:
    history = History(RULES.window_s)
    p0, p1 = (WorkerStatus(f"p{n}", P, True) for n in range(2))
    gone = (p0, p1), (p0, replace(p1, is_ready=False)), (p0, replace(p1, role=D))
    for at_s, workers in enumerate(((p0, p1, WorkerStatus("d0", D, True)), *gone)):
        history.observe(Observation(float(at_s), workers))
    assert set(history.stand_ins) == {"p1"}
    history.observe(Observation(9.0, (p0, p1, WorkerStatus("d0", D, True))))
    assert not history.stand_ins


def test_a_stand_in_that_was_silent_for_a_while_still_goes_back() -> None:
    fleet, stand_in = after_a_rescue(cooldown_s=20.0)
    role = fleet.roles.pop(stand_in.worker_id)
    fleet.run(10.0, 100.0, 0.0)
    fleet.roles[stand_in.worker_id] = role
    assert fleet.run(30.0, 100.0, 1.0) == [Flip(stand_in.worker_id, P)]


def test_a_new_process_under_a_stand_in_s_id_is_nobody_s_stand_in() -> None:
    history = History(RULES.window_s)
    p0, p1 = (WorkerStatus(f"p{n}", P, True, epoch=b"first") for n in range(2))
    d0, stand_in = WorkerStatus("d0", D, True), replace(p1, role=D)
    for at_s, workers in enumerate(
        ((p0, p1, d0), (p0, p1), (p0, replace(stand_in, is_ready=False)), (p0, stand_in))
    ):
        history.observe(Observation(float(at_s), workers))
    assert set(history.stand_ins) == {"p1"}
    history.observe(Observation(10.0, (p0, d0)))
    later_s = 10.0 + 2 * RULES.cooldown_s
    history.observe(Observation(later_s, (p0, d0, replace(stand_in, epoch=b"second"))))
    assert not history.stand_ins
    assert decide_unplanned(history, RULES, later_s).actions == ()


@pytest.mark.parametrize("is_seen_gone", [True, False])
def test_a_decode_worker_started_under_a_dead_prefill_worker_s_id_changed_no_role(is_seen_gone: bool) -> None:
    history = History(RULES.window_s)
    p0, p1 = (WorkerStatus(f"p{n}", P, True, epoch=b"first") for n in range(2))
    history.observe(Observation(0.0, (p0, p1)))
    if is_seen_gone:
        history.observe(Observation(2.0, (p0,)))
    history.observe(Observation(4.0, (p0, replace(p1, role=D, epoch=b"second"))))
    assert not history.stand_ins
    assert history.changes == []


def test_without_a_planner_nothing_else_changes_whatever_the_load() -> None:
    fleet = Fluid(8, 8, decide=decide_unplanned)
    assert fleet.run(120.0, 12 * ONE_WORKER, 100.0) == []


def test_a_fleet_whose_decode_workers_are_still_starting_is_left_alone_for_a_minute() -> None:
    fleet = Fluid(2, 0)
    assert fleet.run(58.0, 0.0, 0.0) == []
    assert [flip.role for flip in fleet.run(6.0, 0.0, 0.0)] == [D]


def test_an_empty_fleet_is_nothing_to_act_on() -> None:
    assert Fluid(0, 0).run(60.0, 0.0, 0.0) == []


def test_who_flips_is_who_is_better_at_the_other_role() -> None:
    compute_rich = replace(PROFILE, prefill_tokens_per_s=20_000.0)
    bandwidth_rich = replace(PROFILE, decode_step_s=0.005, decode_s_per_sequence=0.0001)
    fleet = Fluid(4, 4, profiles={"d2": compute_rich, "p3": bandwidth_rich, "d1": bandwidth_rich})
    to_prefill = fleet.run(60.0, 8 * ONE_WORKER, 50.0)
    assert to_prefill[0].worker_id == "d2"
    assert "d1" not in {flip.worker_id for flip in to_prefill[:2]}
    fleet = Fluid(4, 4, profiles={"d2": compute_rich, "p3": bandwidth_rich})
    assert fleet.run(60.0, 1000.0, 2500.0)[0].worker_id == "p3"


def test_among_equals_who_holds_the_least_kv_flips() -> None:
    history = History(RULES.window_s)
    for tick in range(16):
        prefill = [
            WorkerStatus(f"p{n}", P, True, PROFILE, cached_tokens=100_000 * (n != 1), kv_tokens=100_000)
            for n in range(3)
        ]
        decode = WorkerStatus("d0", D, True, PROFILE, running=500, running_tokens=1000)
        history.observe(Observation(tick * TICK_S, (*prefill, decode)))
    assert decide(history, RULES, 15 * TICK_S).actions == (Flip("p1", D),)


def test_a_worker_that_does_not_take_the_order_is_counted_where_it_is_again() -> None:
    history = History(RULES.window_s)
    workers = (WorkerStatus("p0", P, True), WorkerStatus("d0", D, True))
    history.observe(Observation(0.0, workers))
    history.flip_ordered("p0", D, 0.0)
    assert history.role_of(workers[0]) is D
    history.observe(Observation(12.0, workers))
    assert history.role_of(workers[0]) is P
    assert history.changes_since(-1.0) == 1, "an order that may have been obeyed counts"


def test_flips_at_the_hand_of_others_count_for_budget_and_cooldown() -> None:
    """The previous leader's, or a user's."""
    history = History(RULES.window_s)
    history.observe(Observation(0.0, (WorkerStatus("w", P, True), WorkerStatus("d0", D, True))))
    history.observe(Observation(5.0, (WorkerStatus("w", D, True), WorkerStatus("d0", D, True))))
    assert history.changes_since(0.0) == 1
    assert history.last_change_s(D) == 5.0


def test_a_planner_that_starts_late_learns_of_flips_from_the_workers() -> None:
    history = History(RULES.window_s)
    worker = WorkerStatus("w", P, True, role_changes_s=(-300.0, -50.0))
    history.observe(Observation(0.0, (worker, WorkerStatus("d0", D, True))))
    assert history.changes_since(-3600.0) == 2
    assert history.last_change_s(P) == -50.0
    assert history.last_change_s(D) == -300.0


DAY_AND_NIGHT = replace(
    RULES, cooldown_s=10.0, windows=(Window(22 * 3600.0, 6 * 3600.0, prefill=Bounds(3), decode=Bounds(1)),)
)


@pytest.mark.parametrize(("day_s", "prefill"), [(12 * 3600.0, 1), (23 * 3600.0, 3), (3600.0, 3)])
def test_a_maintenance_window_sets_other_bounds(day_s: float, prefill: int) -> None:
    fleet = Fluid(1, 5, DAY_AND_NIGHT)
    fleet.now_s = day_s
    fleet.run(60.0, 10.0, 10.0)
    assert fleet.count(P) == prefill


def test_every_plan_tells_what_it_is_based_on() -> None:
    fleet = Fluid(2, 2)
    fleet.run(60.0, ONE_WORKER, 100.0)
    _, plan = fleet.plans[-1]
    assert plan.held_by == "comfort"
    assert plan.pools[P].pressure == pytest.approx(0.5, rel=0.01)
    assert plan.pools[P].workers == 2
    assert plan.pools[D].attainment == 1.0


def test_decode_that_fills_is_helped_before_it_is_pressed() -> None:
    filling = Fluid(6, 2)
    filling.run(60.0, 1000.0, 100.0)
    for sequences in range(100, 400, 20):
        filling.run(TICK_S, 1000.0, sequences)
    first = next(plan for _, plan in filling.plans if plan.actions)
    assert {flip.role for flip in flips_of(first)} == {D}
    assert first.pools[D].pressure < RULES.comfort


def test_a_burst_that_is_over_is_not_taken_for_decode_that_fills() -> None:
    fleet = Fluid(6, 2)
    fleet.run(60.0, 1000.0, 100.0)
    assert fleet.run(4 * TICK_S, 1000.0, 380.0) == []
    assert fleet.run(60.0, 1000.0, 100.0) == []


def test_two_looks_that_are_alike_by_chance_change_no_role() -> None:
    fleet = Fluid(1, 7)
    looks = (0.7, 0.72, 0.67, 0.75, 0.84, 0.79, 0.74, 0.73, 0.58, 0.76, 0.64, 0.59, 0.96, 0.95)
    assert [flip for asked in looks for flip in fleet.run(TICK_S, asked * ONE_WORKER, 100.0)] == []


@pytest.mark.parametrize("workers_needed", [5, 6, 7])
def test_decode_workers_leave_as_their_pool_empties_and_not_before(workers_needed: int) -> None:
    fleet = Fluid(3, 5)
    fleet.run(60.0, ONE_WORKER, 1200.0)
    for sequences in range(1200, 600, -40):
        fleet.run(TICK_S, workers_needed * ONE_WORKER, sequences)
        assert sequences < fleet.count(D) * ONE_DECODE_WORKER
    assert fleet.count(P) == 5, "prefill is helped meanwhile"


def test_a_moment_in_which_one_long_sequence_runs_does_not_tell_what_decode_bears() -> None:
    history = History(RULES.window_s)
    prefill = tuple(WorkerStatus(f"p{n}", P, True, PROFILE) for n in range(3))
    for tick in range(16):
        running, context = (1, 60_000) if tick == 15 else (10, 4_000)
        decode = replace(
            WorkerStatus("d0", D, True, PROFILE, waiting=4, held_tokens=90_000, kv_tokens=200_000),
            running=running,
            running_tokens=running * context,
        )
        history.observe(Observation(tick * TICK_S, (*prefill, decode)))
    assert decide(history, RULES, 15 * TICK_S).held_by == "comfort"
