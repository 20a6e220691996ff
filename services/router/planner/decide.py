"""The planner's decision, in order of urgency:

    rescue     no decode worker is left: one prefill worker flips, whatever bounds and budget say (`rescue.py`)
    bounds     a pool has fewer workers than it must have: flips within the hour's budget
    rebalance  one pool is pressed, or decode certainly will be, and the other can spare workers: flips, if these
               help enough for certain
    scale      where it is the planner's to say: workers are started or stopped (`scaling.py`)

Flips of one decision go one way. What keeps the planner steady: it flips only if the higher of the two pressures
falls by a margin even if both estimates are wrong by a standard error, so with traffic as it is the way back
never pays; and nothing goes back within the cooldown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from baton.fleet import Role
from baton.router.planner.actions import Plan
from baton.router.planner.history import History, WorkerStatus
from baton.router.planner.rescue import rescue
from baton.router.planner.rules import PlannerRules
from baton.router.planner.scaling import scaled
from baton.router.planner.situation import EASY, ERRORS, OTHER, Situation

_AHEAD_S = {Role.PREFILL: 0.0, Role.DECODE: 20.0}
"""How far ahead the pools are looked at: sequences last, so what is there now may be ending, or only the beginning;
and who is to help takes as long to come once decode is full. What is asked of prefill is known at once."""


def decide(history: History, rules: PlannerRules, now_s: float) -> Plan:
    """What to do now. `history` has at least one observation, the newest of about `now_s`."""
    situation = Situation(history, rules, now_s)
    if urgent := rescue(situation):
        return urgent
    if not situation.is_warm:
        return situation.hold(
            "warming up", f"less than {rules.window_s / 2:g} s of the fleet were seen so far"
        )
    plan = _keep_bounds(situation) or _rebalance(situation)
    return plan if plan.actions or rules.workers is None else scaled(situation, plan)


def _keep_bounds(situation: Situation) -> Plan | None:
    if not situation.members[Role.DECODE]:  # that is for `rescue`, which knows when
        return None
    for role, bounds in situation.bounds.items():
        missing = bounds.least - len(situation.members[role])
        donor = OTHER[role]
        flips = min(missing, situation.room_to_flip(donor), situation.room_to_leave(donor))
        leaving = situation.may_leave(donor)[: max(0, flips)]
        if leaving and not situation.rests(donor):
            return situation.flip(leaving, role, f"{role.value} is to have at least {bounds.least} workers")
    return None


def _rebalance(situation: Situation) -> Plan:
    rules, members = situation.rules, situation.members
    pressures = {role: situation.pressure(role, members[role], -ERRORS, _AHEAD_S[role]) for role in Role}
    receiver = max(Role, key=lambda role: pressures[role])
    donor = OTHER[receiver]
    # What was just begun is finished: who stops at the limit is soon over it, and by then traffic may turn.
    comfort = EASY if situation.went_lately(receiver, rules.window_s) else rules.comfort
    if pressures[receiver] < comfort:
        return situation.hold("comfort", f"no pool is pressed by more than {comfort:.2g}")
    if situation.rests(donor):
        went_s = situation.now_s - situation.history.last_change_s(donor)
        return situation.hold(
            "cooldown",
            f"{receiver.value} is pressed, but a worker went to {donor.value} {went_s:.0f} s ago",
        )
    if not situation.flips_left:
        return situation.hold(
            "budget",
            f"{receiver.value} is pressed, but {situation.flip_budget} flips are an hour's",
        )
    candidates = situation.may_leave(donor)[: situation.room_to_flip(donor)]
    best, worst = _best_count(situation, receiver, candidates)
    flips = min(best, situation.room_to_leave(donor))
    if not flips:
        return situation.hold(
            "bounds", f"{receiver.value} is pressed, but {donor.value} has no worker to spare"
        )
    if worst > _bearable(situation, receiver, pressures[receiver]):
        return situation.hold(
            "margin", f"{receiver.value} is pressed, but {donor.value} would be nearly as much"
        )
    before = f"{receiver.value} is pressed by {pressures[receiver]:.2f}"
    reason = f"{before}; with {best} from {donor.value} neither pool is above {worst:.2f}"
    return situation.flip(candidates[:flips], receiver, reason)


def _bearable(situation: Situation, receiver: Role, ahead: float) -> float:
    """The most pressure that flips to `receiver` may leave on a pool, for they are to help enough. What is only
    foreseen (`ahead`) puts no pool beyond comfort."""
    rules = situation.rules
    now = situation.pressure(receiver, situation.members[receiver], -ERRORS)
    helped = 1 - rules.margin
    return max(helped * now, min(helped * ahead, rules.comfort))


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
            situation.pressure(receiver, [*situation.members[receiver], *going], -ERRORS, _AHEAD_S[receiver]),
            situation.pressure(donor, staying, ERRORS, _AHEAD_S[donor]),
        )
        if worst < best[1]:
            best = count, worst
    return best
