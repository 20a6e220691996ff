"""What is done whether or not anybody plans: a fleet without decode workers serves nobody, one without prefill
workers does. So a prefill worker stands in for them, and where nobody plans it goes back once one of them has
returned for good."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.planner.actions import Plan
from baton.router.planner.history import History
from baton.router.planner.rules import PlannerRules
from baton.router.planner.situation import Situation


def decide_unplanned(history: History, rules: PlannerRules, now_s: float) -> Plan:
    """What to do now where there is no planner. `history` as for `decide`."""
    situation = Situation(history, rules, now_s)
    plan = rescue(situation) or _give_back(situation)
    return plan or situation.hold("off", "the planner is off")


def rescue(situation: Situation) -> Plan | None:
    if situation.members[Role.DECODE] or not _is_overdue(situation):
        return None
    ready = [worker for worker in situation.members[Role.PREFILL] if worker.is_ready]
    if not ready:
        return None
    fittest = situation.in_order_of_fitness(ready, Role.DECODE)[0]
    return situation.flip([fittest], Role.DECODE, "no decode worker is left")


def _is_overdue(situation: Situation) -> bool:
    history, rules, now_s = situation.history, situation.rules, situation.now_s
    last_s = history.served_until_s(Role.DECODE)
    if last_s is None:
        return now_s - history.began_at_s >= rules.starting_s
    return now_s - last_s >= rules.rescue_after_s


def _give_back(situation: Situation) -> Plan | None:
    history, decode = situation.history, situation.members[Role.DECODE]
    own = [worker for worker in decode if worker.is_ready and worker.worker_id not in history.stand_ins]
    stand_ins = [
        worker for worker in situation.may_leave(Role.DECODE) if worker.worker_id in history.stand_ins
    ]
    if not own or not stand_ins:
        return None
    return situation.flip(stand_ins[:1], Role.PREFILL, "decode workers are back")
