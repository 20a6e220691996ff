"""Where a request runs. Pure: a snapshot and a request in, a placement or a refusal out; no clock, no I/O.

A policy (`baton.router.policies`) chooses the pair. Common to all of them: a decode worker that lacks only a few
tokens of the prompt computes these itself, and without prefill workers it computes all.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.router.policies.base import Policy
from baton.router.prediction import Prediction, predict
from baton.router.snapshot import Demand, Snapshot


@dataclass(frozen=True, slots=True)
class Placement:
    """prefill is None for a local prefill on the decode worker."""

    prefill: str | None
    decode: str
    prediction: Prediction
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


def place(snapshot: Snapshot, demand: Demand, policy: Policy) -> Placement | Refusal:
    if not snapshot.decode:
        return Refusal("no decode worker is ready")
    choice = policy.choose(snapshot, demand)
    prefill, decode, reasons = choice.prefill, choice.decode, choice.reasons
    if prefill is None:
        reasons = (*reasons, "local prefill: no prefill worker is ready")
    elif demand.may_prefill_on(decode):
        uncached_tokens = demand.prompt_tokens - decode.cached_tokens
        prefill = None
        reasons = (*reasons, f"local prefill: only {uncached_tokens} tokens are not cached there")
    return Placement(
        prefill=None if prefill is None else prefill.worker_id,
        decode=decode.worker_id,
        prediction=predict(prefill, decode, demand),
        reasons=reasons,
    )
