"""What the planner remembers of role changes, whoever ordered them."""

from __future__ import annotations

from fluid_fleet import RULES, D, P

from baton.router.planner.history import History, Observation, WorkerStatus


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
