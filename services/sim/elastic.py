"""Workers that change roles on virtual time, at the word of the router's own planner.

A worker that leaves its pool gets nothing new. A prefill worker finishes what it has, until its blocks are
acknowledged; a decode worker's sequences move to others, and who is to come there goes elsewhere. Then it takes
`flip_s` to change, and joins the other pool with its KV pool as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from baton.fleet import Role
from baton.router.planner.actions import Flip, Plan
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rules import DAY_S
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.fleet_file import ElasticSpec
from baton.sim.moving import move_running, move_waiting
from baton.sim.prefill_worker import PrefillWorker
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
    """workers: all there are now, also those that leave their pool. join: a worker, finished, enters `role`.
    is_over: whether nothing is left to plan for."""

    def __init__(
        self,
        spec: ElasticSpec,
        clock: Clock,
        workers: Callable[[], Iterable[SimWorker]],
        join: Callable[[SimWorker, Role], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._spec = spec
        self._clock = clock
        self._workers = workers
        self._join = join
        self._is_over = is_over
        self._history = History(spec.rules.window_s, spec.rules.cooldown_s)
        self.flips: list[Flipped] = []
        self.plans: list[tuple[float, Plan]] = []

    def tick(self) -> None:
        if self._is_over():
            return
        now_s = self._clock.now_s
        statuses = tuple(status_of(worker) for worker in self._workers())
        self._history.observe(Observation(now_s, statuses, now_s % DAY_S))
        plan = decide(self._history, self._spec.rules, now_s)
        self.plans.append((now_s, plan))
        for action in plan.actions:
            assert isinstance(action, Flip), "no rules of a simulated fleet ask for other numbers"
            self._history.flip_ordered(action.worker_id, action.role, now_s)
            self._leave(action)
        self._clock.after(self._spec.interval_s, self.tick)

    def _leave(self, flip: Flip) -> None:
        worker = next(worker for worker in self._workers() if worker.worker_id == flip.worker_id)
        worker.is_open = False
        self._join_when_done(worker, flip.role, self._clock.now_s)

    def _join_when_done(self, worker: SimWorker, role: Role, told_at_s: float) -> None:
        if isinstance(worker, DecodeWorker):
            workers = list(self._workers())
            others = [other for other in workers if isinstance(other, DecodeWorker)]
            move_waiting(worker, (other for other in workers if isinstance(other, PrefillWorker)), others)
            move_running(worker, others, self._clock)
        if worker.leased_sequences:
            self._clock.after(_POLL_S, partial(self._join_when_done, worker, role, told_at_s))
            return
        serves_at_s = self._clock.now_s + self._spec.flip_s
        self.flips.append(Flipped(worker.worker_id, role, told_at_s, serves_at_s))
        self._clock.at(serves_at_s, partial(self._join, worker, role))


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
