"""How many workers there are to be, where that is the planner's to say (`PlannerRules.workers`):

    start   the fleet has fewer than it must have, or no split of those that it has would do
    stop    it has more than it may have, or for some time would have done with fewer

A pool needs as many workers as bring its pressure down to a bearable one; both pools' needs together do not depend
on who has which role, so what a role change can mend starts nobody. To stop, the most that was needed within
`scale_in_after_s` counts: a lull ends nobody. One worker leaves at a time, and has drained before the next does.
"""

from __future__ import annotations

import math
from dataclasses import replace

from baton.fleet import Role
from baton.router.planner.actions import Plan, Start, Stop
from baton.router.planner.history import WorkerStatus
from baton.router.planner.situation import EASY, ERRORS, OTHER, Situation

_GROWTH = 2
"""Times as many workers as there are, at most, in one order."""


def scaled(situation: Situation, plan: Plan) -> Plan:
    """`plan`, which holds, or what is to be done about the number of workers instead; either knows how many are
    needed."""
    easily = {role: _needed(situation, role, ERRORS, EASY) for role in Role}
    noted = replace(plan, needed_workers=sum(easily.values()))
    if not situation.scales_left or situation.history.scale.rests(situation.now_s):
        return noted
    order = _start(situation) or _stop(situation, easily)
    return noted if order is None else replace(order, needed_workers=noted.needed_workers)


def _start(situation: Situation) -> Plan | None:
    there, bounds, scale = situation.workers, situation.worker_bounds, situation.history.scale
    limit = math.inf if bounds.most is None else bounds.most
    surely = sum(_needed(situation, role, -ERRORS, situation.rules.comfort) for role in Role)
    if max(surely, bounds.least) <= there or there >= limit:
        return None
    if scale.came_since(situation.now_s - situation.rules.window_s):
        return None
    wanted = {role: _needed(situation, role, 0.0, EASY) for role in Role}
    goal = int(min(limit, max(bounds.least, min(_GROWTH * there, sum(wanted.values())))))
    if goal <= max(there, scale.ordered_workers(situation.now_s)):
        return None
    role = max(Role, key=lambda role: wanted[role] - len(situation.members[role]))
    why = f"{surely} workers are needed" if surely > there else f"there are to be at least {bounds.least}"
    return Plan(f"{why}, {there} are there", (Start(role, goal),), pools=situation.loads())


def _stop(situation: Situation, easily: dict[Role, int]) -> Plan | None:
    there, bounds, scale = situation.workers, situation.worker_bounds, situation.history.scale
    is_over = bounds.most is not None and there > bounds.most
    needed = scale.most_needed(situation.now_s - situation.rules.scale_in_after_s)
    if scale.is_busy(situation.now_s) or there <= bounds.least:
        return None
    if not is_over and (needed is None or max(needed, sum(easily.values())) >= there):
        return None
    leaving = _who_is_missed_least(situation)
    if leaving is None:
        return None
    why = f"there are to be at most {bounds.most}" if is_over else f"{needed} workers would have done"
    return Plan(f"{why}, {there} are there", (Stop(leaving.worker_id),), pools=situation.loads())


def _who_is_missed_least(situation: Situation) -> WorkerStatus | None:
    """Of the workers that may go the one without whom its pool is pressed the least."""

    def pressure_without(worker: WorkerStatus) -> float:
        staying = [other for other in situation.members[worker.role] if other is not worker]
        return situation.pressure(worker.role, staying, ERRORS)

    spare = [
        worker
        for role in Role
        if len(situation.members[role]) > situation.bounds[role].least
        for worker in situation.may_leave(role)[:1]
    ]
    return min(spare, key=pressure_without, default=None)


def _needed(situation: Situation, role: Role, errors: float, pressure: float) -> int:
    """Workers like those of the pool, of whom each is pressed by `pressure` at most."""
    members, bounds = situation.members[role], situation.bounds[role]
    needed = bounds.least
    if members:
        asked = len(members) * situation.pressure(role, members, errors) / pressure
        needed = max(needed, math.ceil(asked))
    elif situation.pressure(role, situation.members[OTHER[role]], errors):
        needed = max(needed, 1)
    return needed if bounds.most is None else min(needed, bounds.most)
