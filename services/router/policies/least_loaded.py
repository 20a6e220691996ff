"""The fewest queued prompt tokens on the prefill side, the fewest sequences on the decode side."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.candidates import Candidates
from baton.router.policies.base import SingleRule, describe_load, least, load_of
from baton.router.snapshot import Demand


class LeastLoaded(SingleRule):
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        best = int(least(*load_of(workers, role))[0])
        return best, describe_load(workers, best, role)
