"""What a decision looks at: both pools as they will be once all flips under way are over, what is asked of them,
and what the rules leave to do."""

from __future__ import annotations

from collections.abc import Sequence

from baton.fleet import Role
from baton.router.planner.actions import Flip, Plan
from baton.router.planner.choice import in_order_of_fitness
from baton.router.planner.history import History, WorkerStatus
from baton.router.planner.load import PoolLoad, capacities, demand, pool_load
from baton.router.planner.rules import Bounds, PlannerRules
from baton.router.planner.scale_history import HOUR_S

ERRORS = 1.0
"""Standard errors that an estimate is taken to be wrong by, against acting."""
EASY = 0.75
"""Pressure that a pool is to be left at by what is done for it, so that it is not at its limit again at once."""
OTHER = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


class Situation:
    """members: by role, who is ready in it or on the way to it. flip_budget: an hour's flips. flips_left,
    scales_left: of the hour's budgets."""

    def __init__(self, history: History, rules: PlannerRules, now_s: float) -> None:
        newest = history.observations[-1]
        self.history = history
        self.rules = rules
        self.now_s = now_s
        self.bounds = rules.bounds(newest.day_s)
        self.members: dict[Role, list[WorkerStatus]] = {role: [] for role in Role}
        for worker in newest.workers:
            if history.scale.is_leaving(worker.worker_id):
                continue
            if worker.is_ready or history.is_under_way(worker.worker_id):
                self.members[history.role_of(worker)].append(worker)
        self.flip_budget = rules.flip_budget(self.workers)
        self.flips_left = max(0, self.flip_budget - history.changes_since(now_s - HOUR_S))
        self._capacity = capacities(history, rules)
        self._demand = demand(history)
        self.worker_bounds = rules.worker_bounds(newest.day_s) or Bounds(self.workers, self.workers)
        self.scales_left = max(0, rules.scales_per_hour - history.scale.orders_since(now_s - HOUR_S))

    @property
    def workers(self) -> int:
        """In both pools, or on their way between them."""
        return sum(len(members) for members in self.members.values())

    def flip(self, going: Sequence[WorkerStatus], role: Role, reason: str) -> Plan:
        actions = tuple(Flip(worker.worker_id, role) for worker in going)
        return Plan(reason, actions, pools=self.loads())

    def hold(self, held_by: str, reason: str) -> Plan:
        return Plan(reason, held_by=held_by, pools=self.loads())

    @property
    def is_warm(self) -> bool:
        """Whether there is enough to estimate from."""
        observations = self.history.observations
        return observations[-1].at_s - observations[0].at_s >= self.rules.window_s / 2

    def pressure(
        self, role: Role, members: Sequence[WorkerStatus], errors: float = 0.0, ahead_s: float = 0.0
    ) -> float:
        """On `members` as the whole pool of `role`; see `Demand.pressure`."""
        pool = [self._capacity[worker.worker_id] for worker in members]
        return self._demand.pressure(role, pool, errors, ahead_s)

    def loads(self) -> dict[Role, PoolLoad]:
        return {
            role: pool_load(role, self.history, members, self.pressure(role, members), self.rules)
            for role, members in self.members.items()
        }

    def went_lately(self, role: Role, seconds: float) -> bool:
        """Whether a worker went to `role` within the last `seconds`."""
        return self.history.last_change_s(role) > self.now_s - seconds

    def rests(self, donor: Role) -> bool:
        """Whether a worker went to `donor` within the cooldown, so that none may go the other way."""
        return self.went_lately(donor, self.rules.cooldown_s)

    def may_leave(self, donor: Role) -> list[WorkerStatus]:
        """Who can go from `donor` to the other pool now, the fittest for that first. Who has changed roles within
        the cooldown stays."""
        recent_s = self.now_s - self.rules.cooldown_s
        resting = {change.worker_id for change in self.history.changes if change.at_s > recent_s}
        staying = [
            worker
            for worker in self.members[donor]
            if worker.role is donor and worker.is_ready and worker.worker_id not in resting
        ]
        return self.in_order_of_fitness(staying, OTHER[donor])

    def in_order_of_fitness(self, workers: Sequence[WorkerStatus], role: Role) -> list[WorkerStatus]:
        return in_order_of_fitness(workers, role, self._capacity)

    def room_to_flip(self, donor: Role) -> int:
        """How many workers can leave `donor` by the bounds of both pools and the hour's budget."""
        receiver = OTHER[donor]
        spare = len(self.members[donor]) - self.bounds[donor].least
        most = self.bounds[receiver].most
        wanted = spare if most is None else min(spare, most - len(self.members[receiver]))
        return max(0, min(wanted, self.flips_left))

    def room_to_leave(self, donor: Role) -> int:
        """How many of them can leave now, in view of those that are just leaving."""
        leaving = sum(worker.role is donor for worker in self.members[OTHER[donor]])
        at_once = max(1, int(self.rules.draining * (len(self.members[donor]) + leaving)))
        return max(0, at_once - leaving)
