"""The contract of a placement policy: the workers and the request in, a pair and its reasons out.

A policy keeps no state, takes no clock and draws no random number of its own: the same snapshot and demand give
the same pair. What takes turns or chance goes by `Demand.ordinal` and `Demand.seed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from baton.fleet import Role
from baton.router.snapshot import Candidate, Demand, Snapshot


@dataclass(frozen=True, slots=True)
class Choice:
    """prefill is None where the snapshot has no prefill worker."""

    prefill: Candidate | None
    decode: Candidate
    reasons: tuple[str, ...]


class Policy(ABC):
    @abstractmethod
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        """`snapshot` has at least one decode worker."""


class SingleRule(Policy):
    """Chooses both workers by one rule, each without regard to the other."""

    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        decode, why_decode = self.pick(snapshot.decode, Role.DECODE, demand)
        if not snapshot.prefill:
            return Choice(None, decode, (f"decode: {why_decode}",))
        prefill, why_prefill = self.pick(snapshot.prefill, Role.PREFILL, demand)
        return Choice(prefill, decode, (f"decode: {why_decode}", f"prefill: {why_prefill}"))

    @abstractmethod
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        """One of `candidates`, which are never none, and why."""


def load_of(candidate: Candidate, role: Role) -> tuple[int, int, str]:
    """Orders candidates by what keeps their role busy: queued prompt tokens, or sequences in the batch."""
    if role is Role.PREFILL:
        return candidate.queued_tokens, candidate.sequences, candidate.worker_id
    return candidate.sequences, candidate.queued_tokens, candidate.worker_id


def describe_load(candidate: Candidate, role: Role) -> str:
    if role is Role.PREFILL:
        return f"{candidate.queued_tokens} tokens queued, {candidate.cached_tokens} cached"
    return f"{candidate.sequences} sequences, {candidate.cached_tokens} tokens cached"
