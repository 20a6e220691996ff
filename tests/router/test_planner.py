"""What the planner promises whatever it sees, and what it does about traffic that can be told in advance."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from fluid_fleet import ONE_DECODE_WORKER, ONE_WORKER, PROFILE, RULES, TICK_S, D, Fluid, P, flips_of
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import Role
from baton.router.planner.actions import Flip
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import Bounds, PlannerRules, Window
from baton.router.planner.scale_history import HOUR_S


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


SMALL_BUDGET = 3
SMALL_RULES = PlannerRules(
    prefill=Bounds(1, 3), decode=Bounds(1, 3), window_s=6.0, cooldown_s=20.0, flips_per_hour=SMALL_BUDGET
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
                assert sum(at_s > now_s - HOUR_S for at_s, _ in flips) < SMALL_BUDGET
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


def test_the_budget_of_a_large_fleet_takes_it_there_and_back() -> None:
    fleet = Fluid(56, 8)
    fleet.run(60.0, 40 * ONE_WORKER, 8 * 100.0)
    assert len(fleet.run(300.0, 5 * ONE_WORKER, 40 * ONE_DECODE_WORKER)) > 30
    fleet.run(300.0, 40 * ONE_WORKER, 8 * 100.0)
    assert fleet.count(P) >= 40
    assert len([flip for _, plan in fleet.plans for flip in flips_of(plan)]) <= 2 * 64


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
