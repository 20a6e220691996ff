"""Both workers by the session's key: requests of a session run where its KV lies already, and routers agree on
where that is without talking. Requests without a session go to the least loaded worker."""

from __future__ import annotations

from collections.abc import Sequence

from baton.fleet import Role
from baton.router.affinity import owner
from baton.router.policies.base import SingleRule, describe_load, load_of
from baton.router.snapshot import Candidate, Demand


class Session(SingleRule):
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        if demand.session_key is not None:
            return session_worker(candidates, demand.session_key), "the session's worker"
        best = min(candidates, key=lambda candidate: load_of(candidate, role))
        return best, describe_load(best, role)


def session_worker(candidates: Sequence[Candidate], session_key: str) -> Candidate:
    """The session's own worker, unless that is overloaded (`baton.router.affinity`)."""
    worker_id = owner(session_key, {candidate.worker_id: candidate.sequences for candidate in candidates})
    return next(candidate for candidate in candidates if candidate.worker_id == worker_id)
