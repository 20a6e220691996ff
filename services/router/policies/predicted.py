"""The pair with the best predicted times, each from the worker's own measured profile.

The prefill worker is the one that is predicted to finish the prompt first, counting its queue and its cache. The
decode worker is the session's own, else the one with the least predicted time to a second token and a few more:
waiting for memory, what is left of the hand-off, and steps of its batch.
"""

from __future__ import annotations

from baton.fleet import Role
from baton.router.policies.base import Choice, Policy, describe_load
from baton.router.policies.session import session_worker
from baton.router.prediction import handoff_s, prefill_s, queue_s, reserve_s, step_s
from baton.router.snapshot import Candidate, Demand, Snapshot

_TOKENS_AHEAD = 32
"""Output tokens by which decode workers are compared; how long an answer will be is not known beforehand."""


class Predicted(Policy):
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        prefill = min(
            snapshot.prefill,
            key=lambda candidate: (queue_s(candidate) + prefill_s(candidate, demand), candidate.worker_id),
            default=None,
        )
        decode, why_decode = _decode(snapshot, prefill, demand)
        if prefill is None:
            return Choice(None, decode, (why_decode,))
        return Choice(prefill, decode, (why_decode, f"prefill: {describe_load(prefill, Role.PREFILL)}"))


def _decode(snapshot: Snapshot, prefill: Candidate | None, demand: Demand) -> tuple[Candidate, str]:
    if demand.session_key is not None:
        return session_worker(snapshot.decode, demand.session_key), "decode: the session's worker"
    best = min(
        snapshot.decode, key=lambda candidate: (_cost_s(prefill, candidate, demand), candidate.worker_id)
    )
    return best, f"decode: {describe_load(best, Role.DECODE)}"


def _cost_s(prefill: Candidate | None, decode: Candidate, demand: Demand) -> float:
    """Predicted seconds until token `_TOKENS_AHEAD`."""
    later_s = _TOKENS_AHEAD * step_s(decode, demand)
    if prefill is None or demand.may_prefill_on(decode):
        return queue_s(decode) + max(prefill_s(decode, demand), reserve_s(decode, demand)) + later_s
    prompt_s = prefill_s(prefill, demand)
    first_s = queue_s(prefill) + max(prompt_s, reserve_s(decode, demand))
    return first_s + handoff_s(prefill, decode, demand, prompt_s) + later_s
