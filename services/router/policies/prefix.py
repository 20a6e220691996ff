"""The worker that caches most of the prompt, however busy it is; the less loaded one among equals."""

from __future__ import annotations

from collections.abc import Sequence

from baton.fleet import Role
from baton.router.policies.base import SingleRule, describe_load, load_of
from baton.router.snapshot import Candidate, Demand


class Prefix(SingleRule):
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        best = min(candidates, key=lambda c: (-c.cached_tokens, load_of(c, role)))
        return best, describe_load(best, role)
