"""Each worker in its turn, whatever it has to do."""

from __future__ import annotations

from collections.abc import Sequence

from baton.fleet import Role
from baton.router.policies.base import SingleRule
from baton.router.snapshot import Candidate, Demand


class RoundRobin(SingleRule):
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        in_order = sorted(candidates, key=lambda candidate: candidate.worker_id)
        return in_order[demand.ordinal % len(in_order)], "its turn"
