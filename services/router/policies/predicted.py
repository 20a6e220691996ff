"""The pair with the best predicted times, each from the worker's own measured profile.

The prefill worker is the one with the shortest queue and the least to compute, for what is computed needlessly is
lost to all. The decode worker is the session's own, else the one with the least predicted time to a second token
and a few more: waiting for memory, what is left of the hand-off, and steps of its batch.
"""

from __future__ import annotations

from baton.fleet import Role
from baton.router.affinity import owner, scores
from baton.router.candidates import Candidates, Column
from baton.router.policies.base import Choice, Policy, describe_load, least
from baton.router.prediction import handoff_s, prefill_s, queue_s, reserve_s, step_s
from baton.router.snapshot import Demand, Snapshot

_TOKENS_AHEAD = 32
"""Output tokens by which decode workers are compared; how long an answer will be is not known beforehand."""

_WORK_WEIGHT = 16.0
"""How much more a second of computing counts than one of waiting: what another worker caches and this one computes
again delays everybody who queues here afterwards."""


class Predicted(Policy):
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        prefill = None
        if len(snapshot.prefill):
            cost = queue_s(snapshot.prefill) + _WORK_WEIGHT * prefill_s(snapshot.prefill, demand)
            prefill = _least(snapshot.prefill, cost, demand)
        decode, why_decode = _decode(snapshot, prefill, demand)
        if prefill is None:
            return Choice(None, decode, (why_decode,))
        return Choice(
            prefill,
            decode,
            (why_decode, f"prefill: {describe_load(snapshot.prefill, prefill, Role.PREFILL)}"),
        )


def _decode(snapshot: Snapshot, prefill: int | None, demand: Demand) -> tuple[int, str]:
    if demand.session_key is not None:
        return owner(
            demand.session_key, snapshot.decode.keys, snapshot.decode.sequences
        ), "decode: the session's worker"
    decode = snapshot.decode
    later_s = _TOKENS_AHEAD * step_s(decode, demand)
    if prefill is None:
        cost = queue_s(decode) + prefill_s(decode, demand) + later_s
    else:
        p = snapshot.prefill.row(prefill)
        prompt_s = prefill_s(p, demand)
        cost = reserve_s(decode, demand) + handoff_s(p, decode, demand, prompt_s) + later_s
    best = _least(decode, cost, demand)
    return best, f"decode: {describe_load(decode, best, Role.DECODE)}"


def _least(workers: Candidates, cost_s: Column, demand: Demand) -> int:
    """Equals take turns: were it always the first of them, its cache alone would be overwritten again and again
    while those of idle workers stay empty."""
    equals = least(cost_s)
    if len(equals) == 1:
        return int(equals[0])
    return int(equals[scores(demand.prefix_key, workers.keys[equals]).argmax()])
