"""What the planner remembers: how busy the workers were, and who changed roles when.

Each router keeps this for itself, whether it leads or not, from what the fleet announces; so a new leader knows of
every flip that its predecessors made.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from baton.fleet import Role, WorkerProfile
from baton.router.planner.scale_history import HOUR_S, ScaleHistory

_OBEYED_AFTER_S = 10.0
"""A worker that is still ready in its old role so long after it was told to change did not take the order."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker at one moment. queued_tokens: of prompts, not computed. busy_s: seconds it has computed since it
    started. running, waiting: sequences on a decode worker. running_tokens: KV of those that run. held_tokens,
    cached_tokens, kv_tokens: KV in use or promised, KV kept for reuse, and room for KV. max_running: sequences in a
    batch at most; 0: unknown. role_changes_s: when it changed roles, oldest first, on the clock of the observation.
    epoch: as in `baton.fleet.WorkerInfo`; who comes back with another one is another worker.
    """

    worker_id: str
    role: Role
    is_ready: bool
    profile: WorkerProfile = field(default_factory=WorkerProfile)
    queued_tokens: int = 0
    busy_s: float = 0.0
    running: int = 0
    waiting: int = 0
    running_tokens: int = 0
    held_tokens: int = 0
    cached_tokens: int = 0
    kv_tokens: int = 0
    max_running: int = 0
    role_changes_s: tuple[float, ...] = ()
    epoch: bytes = b""


@dataclass(frozen=True, slots=True)
class Observation:
    """at_s: on a clock that only goes forward. day_s: seconds of the day, UTC. waiting_tokens: of prompts that this
    router has not sent to any worker yet."""

    at_s: float
    workers: tuple[WorkerStatus, ...]
    day_s: float = 0.0
    waiting_tokens: int = 0


@dataclass(frozen=True, slots=True)
class RoleChange:
    """A worker left its pool for that of `role`, or was told to."""

    worker_id: str
    role: Role
    at_s: float


class History:
    """Observations of the last `window_s`; role changes of the last hour, or of `remember_s` where that is more.
    stand_ins: who went over to decode when nobody was left there, and is not known to be back, by when it was seen
    last: who is silent for a while still has to go back."""

    def __init__(self, window_s: float, remember_s: float = HOUR_S) -> None:
        self._window_s = window_s
        self._remember_s = max(HOUR_S, remember_s)
        self._roles: dict[str, Role] = {}
        self._epochs: dict[str, bytes] = {}
        self._under_way: dict[str, RoleChange] = {}
        self._served_s: dict[Role, float] = {}
        self._lacks_decode = False
        self.stand_ins: dict[str, float] = {}
        self.scale = ScaleHistory()
        self.observations: deque[Observation] = deque()
        self.began_at_s = math.inf
        self.changes: list[RoleChange] = []

    def observe(self, observation: Observation) -> None:
        at_s = observation.at_s
        assert not self.observations or at_s >= self.observations[-1].at_s, "time went back"
        self.observations.append(observation)
        self.began_at_s = min(self.began_at_s, at_s)
        while len(self.observations) > 1 and self.observations[1].at_s <= at_s - self._window_s:
            self.observations.popleft()
        present = {worker.worker_id for worker in observation.workers}
        self._roles = {w: role for w, role in self._roles.items() if w in present}
        self._under_way = {w: change for w, change in self._under_way.items() if w in present}
        self._epochs = {w: epoch for w, epoch in self._epochs.items() if w in present or w in self.stand_ins}
        for worker in observation.workers:
            self._recognise(worker)
            self._follow(worker, at_s)
        self._served_s |= {worker.role: at_s for worker in observation.workers if worker.is_ready}
        self._lacks_decode = self._served_s.get(Role.DECODE) != at_s
        self._follow_stand_ins(observation)
        ready = sum(w.is_ready and not self.scale.is_leaving(w.worker_id) for w in observation.workers)
        self.scale.observe(present, ready, at_s)
        self.changes = [change for change in self.changes if change.at_s > at_s - self._remember_s]

    def flip_ordered(self, worker_id: str, role: Role, at_s: float) -> None:
        change = RoleChange(worker_id, role, at_s)
        self._under_way[worker_id] = change
        self._note(change)

    def flip_refused(self, worker_id: str) -> None:
        """The worker keeps its role. The change goes on counting: it may have begun."""
        self._under_way.pop(worker_id, None)
        self._roles.pop(worker_id, None)

    def role_of(self, worker: WorkerStatus) -> Role:
        """The role that `worker` has or is on its way to."""
        change = self._under_way.get(worker.worker_id)
        return worker.role if change is None else change.role

    def is_under_way(self, worker_id: str) -> bool:
        return worker_id in self._under_way

    def last_change_s(self, role: Role) -> float:
        """When a worker last went to `role`."""
        return max((change.at_s for change in self.changes if change.role is role), default=-math.inf)

    def served_until_s(self, role: Role) -> float | None:
        """When a worker was ready in `role` last; None where none was yet."""
        return self._served_s.get(role)

    def changes_since(self, at_s: float) -> int:
        return sum(change.at_s > at_s for change in self.changes)

    def _recognise(self, worker: WorkerStatus) -> None:
        """A new process under a known id takes over nothing of what that one was doing."""
        worker_id = worker.worker_id
        if self._epochs.get(worker_id, worker.epoch) != worker.epoch:
            self._roles.pop(worker_id, None)
            self._under_way.pop(worker_id, None)
            self.stand_ins.pop(worker_id, None)
        self._epochs[worker_id] = worker.epoch

    def _follow(self, worker: WorkerStatus, at_s: float) -> None:
        worker_id = worker.worker_id
        known = self._roles.get(worker_id)
        change = self._under_way.get(worker_id)
        if known is None:
            self._adopt(worker)
        elif change is not None and worker.role is change.role:
            if worker.is_ready:
                del self._under_way[worker_id]
        elif change is not None:
            if worker.is_ready and at_s > change.at_s + _OBEYED_AFTER_S:
                self.flip_refused(worker_id)
                self._roles[worker_id] = worker.role
        elif known is not worker.role:  # at the hand of somebody else
            self._note(RoleChange(worker_id, worker.role, at_s))

    def _note(self, change: RoleChange) -> None:
        self.changes.append(change)
        self._roles[change.worker_id] = change.role
        if change.role is Role.DECODE and self._lacks_decode:
            self.stand_ins[change.worker_id] = change.at_s

    def _follow_stand_ins(self, observation: Observation) -> None:
        for worker in observation.workers:
            worker_id = worker.worker_id
            if worker_id in self.stand_ins:
                self.stand_ins[worker_id] = observation.at_s
                if worker.is_ready and worker.role is Role.PREFILL and not self.is_under_way(worker_id):
                    del self.stand_ins[worker_id]
        since_s = observation.at_s - self._remember_s
        self.stand_ins = {w: seen_s for w, seen_s in self.stand_ins.items() if seen_s > since_s}

    def _adopt(self, worker: WorkerStatus) -> None:
        """A worker not seen before brings its own past with it; its roles took turns."""
        self._roles[worker.worker_id] = worker.role
        role = worker.role
        known = {(change.worker_id, change.at_s) for change in self.changes}
        for changed_at_s in reversed(worker.role_changes_s):
            if (worker.worker_id, changed_at_s) not in known:
                self.changes.append(RoleChange(worker.worker_id, role, changed_at_s))
            role = Role.DECODE if role is Role.PREFILL else Role.PREFILL
