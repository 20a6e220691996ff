"""The planner's decision, in order of urgency:

    rescue     no decode worker is left: one prefill worker flips at once, whatever the rules say
    bounds     a pool has fewer workers than it must have: flips within the hour's budget
    rebalance  one pool is pressed and the other can spare workers: flips, if these help enough for certain

Flips of one decision go one way. What keeps the planner steady: it flips only if the higher of the two pressures
falls by a margin even if both estimates are wrong by a standard error, so with traffic as it is the way back
never pays; and nothing goes back within the cooldown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baton.fleet import Role
from baton.router.planner.actions import Flip, Plan
from baton.router.planner.history import History, WorkerStatus
from baton.router.planner.rules import PlannerRules
from baton.router.planner.situation import OTHER, Situation

_ERRORS = 1.0
"""Standard errors that an estimate is taken to be wrong by, against acting."""
_DECLINE_S = 20.0
"""How far ahead the pool that gives workers is looked at, where what runs there is ending."""


def decide(history: History, rules: PlannerRules, now_s: float) -> Plan:
    """What to do now. `history` has at least one observation, the newest of about `now_s`."""
    situation = Situation(history, rules, now_s)
    if rescue := _rescue(situation):
        return rescue
    if not situation.is_warm:
        return _hold(
            situation, "warming up", f"less than {rules.window_s / 2:g} s of the fleet were seen so far"
        )
    return _keep_bounds(situation) or _rebalance(situation)


def _rescue(situation: Situation) -> Plan | None:
    """A fleet without decode workers serves nobody, one without prefill workers does. One that just starts may have
    its decode workers still coming."""
    if situation.members[Role.DECODE]:
        return None
    if Role.DECODE not in situation.history.seen_roles and not situation.is_warm:
        return None
    ready = [worker for worker in situation.members[Role.PREFILL] if worker.is_ready]
    if not ready:
        return None
    fittest = situation.in_order_of_fitness(ready, Role.DECODE)[0]
    return _flip(situation, [fittest], Role.DECODE, "no decode worker is left")


def _keep_bounds(situation: Situation) -> Plan | None:
    for role, bounds in situation.bounds.items():
        missing = bounds.least - len(situation.members[role])
        donor = OTHER[role]
        flips = min(missing, situation.room_to_flip(donor), situation.room_to_leave(donor))
        leaving = situation.may_leave(donor)[: max(0, flips)]
        if leaving and not situation.rests(donor):
            return _flip(situation, leaving, role, f"{role.value} is to have at least {bounds.least} workers")
    return None


def _rebalance(situation: Situation) -> Plan:
    rules, members = situation.rules, situation.members
    pressures = {role: situation.pressure(role, members[role], -_ERRORS) for role in Role}
    receiver = max(Role, key=lambda role: pressures[role])
    donor = OTHER[receiver]
    if pressures[receiver] < rules.comfort:
        return _hold(situation, "comfort", f"no pool is pressed by more than {rules.comfort:g}")
    if situation.rests(donor):
        went_s = situation.now_s - situation.history.last_change_s(donor)
        return _hold(
            situation,
            "cooldown",
            f"{receiver.value} is pressed, but a worker went to {donor.value} {went_s:.0f} s ago",
        )
    if not situation.flips_left:
        return _hold(
            situation,
            "budget",
            f"{receiver.value} is pressed, but {rules.flips_per_hour} flips are an hour's",
        )
    candidates = situation.may_leave(donor)[: situation.room_to_flip(donor)]
    best, worst = _best_count(situation, receiver, candidates)
    flips = min(best, situation.room_to_leave(donor))
    if not flips:
        return _hold(
            situation, "bounds", f"{receiver.value} is pressed, but {donor.value} has no worker to spare"
        )
    if worst > (1 - rules.margin) * pressures[receiver]:
        return _hold(
            situation, "margin", f"{receiver.value} is pressed, but {donor.value} would be nearly as much"
        )
    before = f"{receiver.value} is pressed by {pressures[receiver]:.2f}"
    reason = f"{before}; with {best} from {donor.value} neither pool is above {worst:.2f}"
    return _flip(situation, candidates[:flips], receiver, reason)


def _best_count(
    situation: Situation, receiver: Role, candidates: Sequence[WorkerStatus]
) -> tuple[int, float]:
    """How many of `candidates` to flip for the least pressure on the harder pressed pool, and that pressure, should
    the estimates be wrong."""
    donor = OTHER[receiver]
    best = 0, math.inf
    for count in range(1, len(candidates) + 1):
        going = candidates[:count]
        staying = [worker for worker in situation.members[donor] if worker not in going]
        worst = max(
            situation.pressure(receiver, [*situation.members[receiver], *going], -_ERRORS),
            situation.pressure(donor, staying, _ERRORS, _DECLINE_S if situation.declines(donor) else 0.0),
        )
        if worst < best[1]:
            best = count, worst
    return best


def _flip(situation: Situation, going: Sequence[WorkerStatus], role: Role, reason: str) -> Plan:
    actions = tuple(Flip(worker.worker_id, role) for worker in going)
    return Plan(reason, actions, pools=situation.loads())


def _hold(situation: Situation, held_by: str, reason: str) -> Plan:
    return Plan(reason, held_by=held_by, pools=situation.loads())
