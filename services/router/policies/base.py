"""The contract of a placement policy: the workers and the request in, a pair and its reasons out.

A policy keeps no state, takes no clock and draws no random number of its own: the same snapshot and demand give
the same pair. What takes turns or chance goes by `Demand.ordinal` and `Demand.seed`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from baton.fleet import Role
from baton.router.candidates import Candidates, Column
from baton.router.snapshot import Demand, Snapshot


@dataclass(frozen=True, slots=True)
class Choice:
    """Indices into the snapshot's candidates. prefill is None where the snapshot has no prefill worker, or where
    the decode worker had better compute the prompt itself."""

    prefill: int | None
    decode: int
    reasons: tuple[str, ...]


class Policy(ABC):
    @abstractmethod
    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        """`snapshot` has at least one decode worker."""


class SingleRule(Policy):
    """Chooses both workers by one rule, each without regard to the other."""

    def choose(self, snapshot: Snapshot, demand: Demand) -> Choice:
        decode, why_decode = self.pick(snapshot.decode, Role.DECODE, demand)
        if not len(snapshot.prefill):
            return Choice(None, decode, (f"decode: {why_decode}",))
        prefill, why_prefill = self.pick(snapshot.prefill, Role.PREFILL, demand)
        return Choice(prefill, decode, (f"decode: {why_decode}", f"prefill: {why_prefill}"))

    @abstractmethod
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        """The index of one of `workers`, which are never none, and why."""


def load_of(workers: Candidates, role: Role) -> tuple[Column, Column]:
    """Orders workers by what keeps their role busy: queued prompt tokens, or sequences in the batch."""
    if role is Role.PREFILL:
        return workers.queued_tokens, workers.sequences
    return workers.sequences, workers.queued_tokens


def least(*columns: Column) -> npt.NDArray[np.intp]:
    """Indices of the workers that have the least of the first column, of these the least of the next, and so on."""
    equals = np.flatnonzero(columns[0] == columns[0].min())
    for column in columns[1:]:
        of_equals = column[equals]
        equals = equals[of_equals == of_equals.min()]
    return equals


def describe_load(workers: Candidates, index: int, role: Role) -> str:
    cached_tokens = workers.cached_tokens.item(index)
    if role is Role.PREFILL:
        return f"{workers.queued_tokens.item(index):.0f} tokens queued, {cached_tokens:.0f} cached"
    return f"{workers.sequences.item(index):.0f} sequences, {cached_tokens:.0f} tokens cached"
