"""Which requests may go to the workers now. Pure: no clock, no I/O; the router and the simulation both run it.

Stations of a request:

    arrive -> waiting (bounded; `fair_queue` has the order)
           -> ahead (at the workers, its prompt not computed yet)
           -> running (its first token is out)
           -> end, from anywhere

Requests wait here only while the workers have plenty to do: each of those that compute prompts has several ahead of
it, and seconds of work. More would not make them faster; it would only fix an order in which nobody can be fair any
more. Decode workers without memory hold back the first token, and thereby what is ahead, as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from baton.fleet import DEFAULT_PREFILL_TOKENS_PER_S, WorkerProfile
from baton.router.fair_queue import Entry, FairQueue

PROMPTS_AHEAD = 16
SECONDS_AHEAD = 1.0
"""Of each worker that computes prompts. It has enough with both: many short prompts may be little work, and one
long prompt must not keep short ones waiting here, which its worker would compute beside it."""

_MEASURED_ADMISSIONS = 64


class SloPolicy(StrEnum):
    """What becomes of a request whose TTFT objective cannot be met any more: served all the same, or refused."""

    NONE = "none"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """max_running: requests at the workers. max_waiting: requests here; 0 lets nobody wait."""

    max_running: int = 1024
    max_waiting: int = 512


@dataclass(frozen=True, slots=True)
class Capacity:
    """Who computes prompts now. workers: how many. prefill_tokens_per_s: of one of them, about."""

    workers: int
    prefill_tokens_per_s: float


def capacity_of(computing: Sequence[WorkerProfile]) -> Capacity:
    """`computing`: the workers that compute prompts, by their profiles."""
    if not computing:
        return Capacity(0, DEFAULT_PREFILL_TOKENS_PER_S)
    return Capacity(len(computing), sum(profile.prefill_rate for profile in computing) / len(computing))


class Admission:
    """Times are seconds on one clock of the caller's."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._limits = limits
        self._queue = FairQueue()
        self._ahead: dict[str, Entry] = {}
        self._ahead_s = 0.0
        self._running: set[Entry] = set()
        self._admitted_at_s: deque[float] = deque(maxlen=_MEASURED_ADMISSIONS)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def waiting_tokens(self) -> int:
        """Of the prompts of those that wait."""
        return self._queue.prompt_tokens

    @property
    def running(self) -> int:
        """At the workers, computed or not."""
        return len(self._running)

    def arrive(self, entry: Entry) -> None:
        """Puts `entry` into the queue; `admit` and then `shed` have to follow."""
        self._queue.add(entry)

    def admit(self, capacity: Capacity, now_s: float) -> list[Entry]:
        """Those whose turn has come, in order."""
        admitted = []
        while len(self._queue) and self._has_room(capacity):
            entry = self._queue.take()
            self._running.add(entry)
            self._ahead[entry.request_id] = entry
            self._set_work(entry, entry.prompt_tokens / capacity.prefill_tokens_per_s)
            self._admitted_at_s.append(now_s)
            admitted.append(entry)
        return admitted

    def shed(self, newest: Entry) -> Entry | None:
        """Who has no place in the queue after `newest` has come, if it is too long; it is out of it then."""
        if len(self._queue) <= self._limits.max_waiting:
            return None
        return self._queue.shed(newest.tenant)

    def placed(self, request_id: str, work_s: float) -> None:
        """What the prompt is predicted to take is known better now."""
        entry = self._ahead.get(request_id)
        if entry is not None:
            self._set_work(entry, work_s)

    def computed(self, request_id: str) -> None:
        """Its first token is out, or needs no prefill any more."""
        entry = self._ahead.get(request_id)
        if entry is not None:
            self._set_work(entry, 0.0)
            del self._ahead[request_id]
            self._ahead_s = self._ahead_s if self._ahead else 0.0  # what rounding has left

    def served(self, entry: Entry, tokens: int) -> None:
        """`tokens` of the answer are out."""
        self._queue.charge_output(entry.tenant, tokens)

    def end(self, entry: Entry) -> None:
        """Out, wherever it is."""
        self._queue.remove(entry)
        self.computed(entry.request_id)
        self._running.discard(entry)

    def drain_s(self, now_s: float) -> float:
        """How long those who wait now will take to be admitted, at the pace of the last admissions."""
        return len(self._queue) * self._pace_s(now_s)

    def wait_s(self, tenant: str, capacity: Capacity, now_s: float) -> float:
        """How long a request of `tenant` that comes now would wait here, with its fair share of the admissions."""
        if not len(self._queue) and self._has_room(capacity):
            return 0.0
        own = self._queue.waiting_of(tenant)
        tenants = self._queue.waiting_tenants + (own == 0)
        return min(len(self._queue) + 1, (own + 1) * tenants) * self._pace_s(now_s)

    def _has_room(self, capacity: Capacity) -> bool:
        """With no worker at all there is: placement knows what to tell the client."""
        if len(self._running) >= self._limits.max_running:
            return False
        return (
            not capacity.workers
            or len(self._ahead) < PROMPTS_AHEAD * capacity.workers
            or self._ahead_s < SECONDS_AHEAD * capacity.workers
        )

    def _set_work(self, entry: Entry, work_s: float) -> None:
        self._ahead_s += work_s - entry.work_s
        entry.work_s = work_s

    def _pace_s(self, now_s: float) -> float:
        """Seconds an admission; while there were none, a guess."""
        admitted = self._admitted_at_s
        return (now_s - admitted[0]) / len(admitted) if admitted else SECONDS_AHEAD / PROMPTS_AHEAD
