"""The worker that caches most of the prompt, however busy it is; the less loaded one among equals."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.candidates import Candidates
from baton.router.policies.base import SingleRule, describe_load, least, load_of
from baton.router.snapshot import Demand


class Prefix(SingleRule):
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        best = int(least(-workers.cached_tokens, *load_of(workers, role))[0])
        return best, describe_load(workers, best, role)
