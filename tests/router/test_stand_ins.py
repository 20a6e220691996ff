"""A prefill worker that stands in where no decode worker is left, planned or not, and how it goes back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fluid_fleet import ONE_WORKER, RULES, TICK_S, D, Decide, Fluid, P

from baton.router.planner.actions import Flip
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rescue import decide_unplanned


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
