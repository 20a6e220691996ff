"""The fewest queued prompt tokens on the prefill side, the fewest sequences on the decode side."""

from __future__ import annotations

from collections.abc import Sequence

from baton.fleet import Role
from baton.router.policies.base import SingleRule, describe_load, load_of
from baton.router.snapshot import Candidate, Demand


class LeastLoaded(SingleRule):
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        best = min(candidates, key=lambda candidate: load_of(candidate, role))
        return best, describe_load(best, role)
