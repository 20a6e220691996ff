"""Where a request runs. Pure: a snapshot and a request in, a placement or a refusal out; no clock, no I/O.

A policy (`baton.router.policies`) chooses the workers. Common to all of them: without prefill workers, or where
disaggregation is off, the decode worker computes the prompt; and so it does where it lacks only a few tokens of it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from baton.router.policies.base import Choice, Policy
from baton.router.prediction import Prediction, predict
from baton.router.snapshot import Demand, Disaggregation, Snapshot


class PrefillSite(enum.Enum):
    """Where the prompt is computed, and why there."""

    REMOTE = "remote"
    LOCAL_ALONE = "local_no_prefill_worker"
    LOCAL_NEVER = "local_disaggregation_off"
    LOCAL_CACHED = "local_almost_cached"
    LOCAL_PREDICTED = "local_predicted_better"


@dataclass(frozen=True, slots=True)
class Placement:
    """prefill is None for a local prefill on the decode worker."""

    prefill: str | None
    decode: str
    prediction: Prediction
    site: PrefillSite
    reasons: tuple[str, ...]

    @property
    def workers(self) -> frozenset[str]:
        return frozenset({self.prompt_worker, self.decode})

    @property
    def prompt_worker(self) -> str:
        """Who computes the prompt."""
        return self.prefill or self.decode


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: str


def place(snapshot: Snapshot, demand: Demand, policy: Policy) -> Placement | Refusal:
    if not len(snapshot.decode):
        return Refusal("no decode worker is ready")
    choice = policy.choose(snapshot, demand)
    site = _site(snapshot, choice, demand)
    prefill = choice.prefill if site is PrefillSite.REMOTE else None
    return Placement(
        prefill=None if prefill is None else snapshot.prefill.worker_ids[prefill],
        decode=snapshot.decode.worker_ids[choice.decode],
        prediction=predict(snapshot, prefill, choice.decode, demand),
        site=site,
        reasons=(*choice.reasons, f"prompt: {site.value}"),
    )


def _site(snapshot: Snapshot, choice: Choice, demand: Demand) -> PrefillSite:
    if not len(snapshot.prefill):
        return PrefillSite.LOCAL_ALONE
    if demand.disaggregation is Disaggregation.NEVER:
        return PrefillSite.LOCAL_NEVER
    cached_tokens = snapshot.decode.cached_tokens.item(choice.decode)
    if demand.disaggregation is Disaggregation.AUTO and demand.is_almost_cached(cached_tokens):
        return PrefillSite.LOCAL_CACHED
    return PrefillSite.LOCAL_PREDICTED if choice.prefill is None else PrefillSite.REMOTE
