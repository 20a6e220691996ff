"""The pair with the best predicted times, each from the worker's own measured profile.

The prefill worker is the one with the shortest queue and the least to compute, for what is computed needlessly is
lost to all. The decode worker is the session's own, else the one with the least predicted time to a second token
and a few more: waiting for memory, what is left of the hand-off, and steps of its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from baton.fleet import Role
from baton.router.policies.base import Choice, Policy, describe_load
from baton.router.policies.session import session_worker
from baton.router.prediction import handoff_s, prefill_s, queue_s, reserve_s, step_s
from baton.router.snapshot import Candidate, Demand, Snapshot

_TOKENS_AHEAD = 32
"""Output tokens by which decode workers are compared; how long an answer will be is not known beforehand."""

_WORK_WEIGHT = 16.0
"""How much more a second of computing counts than one of waiting: what another worker caches and this one computes
again delays everybody who queues here afterwards. By simulation of 16 prefill workers and a trace of which two
thirds repeat: where they are overloaded, 56 % of requests meet their objectives with 6, 67 % with 16 and 73 % with
30; below that 16 has the most, and where nobody queues it makes no difference."""


class Predicted(Policy):
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        prefill = None
        if snapshot.prefill:
            prefill = _least(
                snapshot.prefill,
                lambda candidate: queue_s(candidate) + _WORK_WEIGHT * prefill_s(candidate, demand),
                demand,
            )
        decode, why_decode = _decode(snapshot, prefill, demand)
        if prefill is None:
            return Choice(None, decode, (why_decode,))
        return Choice(prefill, decode, (why_decode, f"prefill: {describe_load(prefill, Role.PREFILL)}"))


def _decode(snapshot: Snapshot, prefill: Candidate | None, demand: Demand) -> tuple[Candidate, str]:
    if demand.session_key is not None:
        return session_worker(snapshot.decode, demand.session_key), "decode: the session's worker"
    best = _least(snapshot.decode, _decode_cost(prefill, demand), demand)
    return best, f"decode: {describe_load(best, Role.DECODE)}"


def _decode_cost(prefill: Candidate | None, demand: Demand) -> Callable[[Candidate], float]:
    """Predicted seconds until token `_TOKENS_AHEAD` on a decode worker, for a prompt computed on `prefill`; what
    does not depend on the decode worker is reckoned once."""
    turn_s = 0.0 if prefill is None else queue_s(prefill)
    prompt_s = 0.0 if prefill is None else prefill_s(prefill, demand)

    def cost_s(decode: Candidate) -> float:
        later_s = _TOKENS_AHEAD * step_s(decode, demand)
        if prefill is None or demand.may_prefill_on(decode):
            return queue_s(decode) + max(prefill_s(decode, demand), reserve_s(decode, demand)) + later_s
        first_s = turn_s + max(prompt_s, reserve_s(decode, demand))
        return first_s + handoff_s(prefill, decode, demand, prompt_s) + later_s

    return cost_s


def _least(
    candidates: Sequence[Candidate], cost_s: Callable[[Candidate], float], demand: Demand
) -> Candidate:
    """Equals take turns: were it always the first of them, its cache alone would be overwritten again and again
    while those of idle workers stay empty."""
    costs_s = [cost_s(candidate) for candidate in candidates]
    least_s = min(costs_s)
    equals = [candidate for candidate, s in zip(candidates, costs_s, strict=True) if s == least_s]
    return sorted(equals, key=lambda candidate: candidate.worker_id)[demand.ordinal % len(equals)]
