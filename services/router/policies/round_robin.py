"""Each worker in its turn, whatever it has to do."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.candidates import Candidates
from baton.router.policies.base import SingleRule
from baton.router.snapshot import Demand


class RoundRobin(SingleRule):
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        return demand.ordinal % len(workers), "its turn"
