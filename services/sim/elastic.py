"""Workers that change roles, come and leave on virtual time, at the word of the router's own planner.

A worker that leaves its pool gets nothing new. A prefill worker finishes what it has, until its blocks are
acknowledged; a decode worker's sequences move to others, and who is to come there goes elsewhere. Then it takes
`flip_s` to change, and joins the other pool with its KV pool as it is; or it is gone. Who is ordered comes
`start_s` later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from baton.fleet import Role
from baton.router.planner.actions import Action, Flip, Plan, Start, Stop
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import DAY_S
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.fleet_file import ElasticSpec
from baton.sim.moving import move_running, move_waiting
from baton.sim.sim_fleet import SimFleet
from baton.sim.sim_worker import SimWorker

_POLL_S = 0.05
"""Between two looks whether a worker has finished, as in `baton.worker.worker`."""


@dataclass(frozen=True, slots=True)
class Flipped:
    """One worker's way to `role`: when it was told, and when it served again."""

    worker_id: str
    role: Role
    told_at_s: float
    serves_at_s: float


class Elastic:
    """waiting_tokens: of prompts in the router's queue. is_over: whether nothing is left to plan for."""

    def __init__(
        self,
        spec: ElasticSpec,
        clock: Clock,
        fleet: SimFleet,
        waiting_tokens: Callable[[], int],
        is_over: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._fleet = fleet
        self._waiting_tokens = waiting_tokens
        self._is_over = is_over
        self._history = History(spec.rules.window_s, spec.rules.cooldown_s)
        self._stopping: set[str] = set()
        self.flips: list[Flipped] = []
        self.plans: list[tuple[float, Plan]] = []

    def tick(self) -> None:
        if self._is_over():
            return
        now_s, rules = self._clock.now_s, self._spec.rules
        statuses = tuple(status_of(worker) for worker in self._fleet.workers())
        self._history.observe(Observation(now_s, statuses, now_s % DAY_S, self._waiting_tokens()))
        plan = decide(self._history, rules, now_s)
        self.plans.append((now_s, plan))
        if plan.needed_workers:
            self._history.scale.note_needed(now_s, plan.needed_workers, rules.scale_in_after_s)
        for action in plan.actions:
            self._act(action, now_s)
        self._clock.after(self._spec.interval_s, self.tick)

    def _act(self, action: Action, now_s: float) -> None:
        match action:
            case Flip(worker_id, role):
                self._history.flip_ordered(worker_id, role, now_s)
                self._close(worker_id, partial(self._flip, role=role, told_at_s=now_s))
            case Start(role, workers):
                self._history.scale.start_ordered(workers, now_s)
                there = len(self._fleet.workers()) - len(self._stopping) + self._fleet.starting
                for _ in range(workers - there):
                    self._fleet.start(role, self._spec.start_s)
            case Stop(worker_id):
                self._history.scale.stop_ordered(worker_id, now_s)
                self._stopping.add(worker_id)
                self._close(worker_id, self._stop)

    def _close(self, worker_id: str, then: Callable[[SimWorker], None]) -> None:
        worker = next(worker for worker in self._fleet.workers() if worker.worker_id == worker_id)
        worker.is_open = False
        self._when_finished(worker, then)

    def _when_finished(self, worker: SimWorker, then: Callable[[SimWorker], None]) -> None:
        if isinstance(worker, DecodeWorker):
            prefill, decode = self._fleet.prefill.values(), self._fleet.decode.values()
            move_waiting(worker, prefill, decode)
            move_running(worker, decode, self._clock)
        if worker.leased_sequences:
            self._clock.after(_POLL_S, partial(self._when_finished, worker, then))
        else:
            then(worker)

    def _flip(self, worker: SimWorker, role: Role, told_at_s: float) -> None:
        serves_at_s = self._clock.now_s + self._spec.flip_s
        self.flips.append(Flipped(worker.worker_id, role, told_at_s, serves_at_s))
        self._clock.at(serves_at_s, partial(self._fleet.change_role, worker, role))

    def _stop(self, worker: SimWorker) -> None:
        if worker.blocks.available < worker.blocks.num_blocks:  # what moves is still on its way from here
            self._clock.after(_POLL_S, partial(self._stop, worker))
            return
        self._stopping.remove(worker.worker_id)
        self._fleet.stop(worker)


def status_of(worker: SimWorker) -> WorkerStatus:
    """As `baton.router.elastic.status_of` has it of a live one."""
    kv = worker.blocks.usage()
    decode = worker if isinstance(worker, DecodeWorker) else None
    return WorkerStatus(
        worker.worker_id,
        Role.PREFILL if decode is None else Role.DECODE,
        worker.is_open,
        worker.speeds,
        queued_tokens=worker.queued_tokens,
        busy_s=worker.busy_s,
        running=0 if decode is None else decode.num_running,
        waiting=0 if decode is None else decode.num_waiting,
        running_tokens=kv.used * worker.block_tokens,
        held_tokens=(kv.used + kv.reserved) * worker.block_tokens,
        cached_tokens=kv.cached * worker.block_tokens,
        kv_tokens=kv.total * worker.block_tokens,
        max_running=worker.max_running,
    )
