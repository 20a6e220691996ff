"""Both workers by the session's key: requests of a session run where its KV lies already, and routers agree on
where that is without talking. Requests without a session go to the least loaded worker."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.affinity import owner
from baton.router.candidates import Candidates
from baton.router.policies.base import SingleRule, describe_load, least, load_of
from baton.router.snapshot import Demand


class Session(SingleRule):
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        if demand.session_key is not None:
            return owner(demand.session_key, workers.keys, workers.sequences), "the session's worker"
        best = int(least(*load_of(workers, role))[0])
        return best, describe_load(workers, best, role)
