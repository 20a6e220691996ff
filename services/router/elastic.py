"""The planner at work: every few seconds it looks at the fleet, decides, tells, and where it leads, acts.

Every router looks and remembers; only the elected one acts, and asks whether it still is right before each act. So
a new leader knows what its predecessor did: it has seen it happen, or hears of it from the workers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from baton.errors import BatonError
from baton.fleet import Member, Role, WorkerState
from baton.router.planner.actions import Action, Flip, Plan, Start, Stop
from baton.router.planner.decide import decide
from baton.router.planner.history import History, Observation, WorkerStatus
from baton.router.planner.rescue import decide_unplanned
from baton.router.planner.rules import DAY_S, PlannerRules
from baton.router.scalers import ScalerAddress
from baton.router.scalers.base import ScaleOrder, Scaler

_AT_WORK = (WorkerState.READY, WorkerState.SUSPECTED)
"""A heartbeat that is late is no reason to take a worker's place."""
_log = logging.getLogger(__name__)


class PlannerMode(StrEnum):
    """off: only rescues, and tells nothing else. advise: decides and tells, and changes nothing."""

    OFF = "off"
    ADVISE = "advise"
    ON = "on"


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """interval_s: between two decisions. scaler: who starts and stops workers."""

    mode: PlannerMode = PlannerMode.OFF
    rules: PlannerRules = field(default_factory=PlannerRules)
    interval_s: float = 2.0
    scaler: ScalerAddress = field(default_factory=ScalerAddress)


class Actuator(Protocol):
    """What changes the fleet; `baton.router.control.FleetControl` is one."""

    async def change_role(self, worker_id: str, role: Role) -> object:
        """Returns once the worker serves in `role`, within a deadline of its own. Raises BatonError."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A plan and what comes of it. leads: this router is the one that acts. is_news: it acts, or is kept from
    acting by another rule than the last time."""

    unix_s: float
    plan: Plan
    mode: PlannerMode
    leads: bool
    is_news: bool

    @property
    def is_acted_on(self) -> bool:
        return self.leads and self.mode is not PlannerMode.ADVISE

    def view(self) -> dict[str, object]:
        """As JSON has it. Roles, workers and seconds under the names that the rest of the API uses."""
        return {
            "mode": self.mode.value,
            "leads": self.leads,
            "reason": self.plan.reason,
            "held_by": self.plan.held_by,
            "actions": [action.view() for action in self.plan.actions],
            "needed_workers": self.plan.needed_workers,
            "pools": self.inputs(),
        }

    def inputs(self) -> dict[str, object]:
        """What was decided on, by pool."""
        return {
            role.value: {
                "workers": load.workers,
                "arriving": load.arriving,
                "pressure": round(min(load.pressure, _MAX_PRESSURE), 4),
                "attainment": round(load.attainment, 4),
                "worst_s": load.worst_s,
                "waiting": load.waiting,
            }
            for role, load in self.plan.pools.items()
        }


_MAX_PRESSURE = 1e6
"""JSON knows no infinity, which is the pressure on an empty pool."""


class Elastic:
    """members: the fleet now. is_leader: read right before each act. publish: gets every decision. scaler: None
    where the number of workers is not the planner's to change. waiting_tokens: of prompts that queue here."""

    def __init__(
        self,
        settings: PlannerSettings,
        members: Callable[[], Iterable[Member]],
        control: Actuator,
        is_leader: Callable[[], bool],
        publish: Callable[[Decision], None],
        scaler: Scaler | None = None,
        waiting_tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        self._settings = settings
        self._members = members
        self._control = control
        self._is_leader = is_leader
        self._publish = publish
        self._scaler = scaler
        self._waiting_tokens = waiting_tokens
        self._history = History(settings.rules.window_s, settings.rules.cooldown_s)
        self._acts: set[asyncio.Task[None]] = set()
        self._scaling: asyncio.Task[None] | None = None
        self.last: Decision | None = None

    async def run(self) -> None:
        """Until cancelled; flips under way are then the workers' own affair, which finish them."""
        try:
            while True:
                await asyncio.sleep(self._settings.interval_s)
                self.decide()
        finally:
            for task in self._acts:
                task.cancel()
            await asyncio.gather(*self._acts, return_exceptions=True)

    def decide(self) -> None:
        """Looks, decides, tells, and begins what is to be done."""
        now_s, unix_s = time.monotonic(), time.time()
        statuses = tuple(status_of(member, now_s - unix_s, now_s) for member in self._members())
        self._history.observe(Observation(now_s, statuses, unix_s % DAY_S, self._waiting_tokens()))
        is_off = self._settings.mode is PlannerMode.OFF
        plan = (decide_unplanned if is_off else decide)(self._history, self._settings.rules, now_s)
        if is_off and not plan.actions:
            return
        if plan.needed_workers:
            remember_s = self._settings.rules.scale_in_after_s
            self._history.scale.note_needed(now_s, plan.needed_workers, remember_s)
        is_news = self.last is None or bool(plan.actions) or plan.held_by != self.last.plan.held_by
        decision = Decision(unix_s, plan, self._settings.mode, self._is_leader(), is_news)
        if not is_off:
            self.last = decision
        self._publish(decision)
        if decision.is_acted_on:
            for action in plan.actions:
                self._begin(action, decision)

    def _begin(self, action: Action, decision: Decision) -> None:
        if not self._is_leader():
            return
        now_s = time.monotonic()
        match action:
            case Flip():
                self._history.flip_ordered(action.worker_id, action.role, now_s)
                self._act(self._flip(action))
                return
            case Start():
                self._history.scale.start_ordered(action.workers, now_s)
            case Stop():
                self._history.scale.stop_ordered(action.worker_id, now_s)
        if self._scaling is not None:  # where nobody has taken that order yet, this one is newer
            self._scaling.cancel()
        self._scaling = self._act(self._scale(ScaleOrder(action, decision.plan.reason, decision.inputs())))

    def _act(self, act: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(act)
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)
        return task

    async def _flip(self, flip: Flip) -> None:
        try:
            await self._control.change_role(flip.worker_id, flip.role)
        except BatonError as error:
            self._history.flip_refused(flip.worker_id)
            _log.warning("planner: %s did not become a %s worker: %s", flip.worker_id, flip.role.value, error)

    async def _scale(self, order: ScaleOrder) -> None:
        assert self._scaler is not None, "without a scaler no rules ask for other numbers, but to advise"
        try:
            await self._scaler.order(order, self._is_leader)
        except BatonError as error:
            self._history.scale.refused(time.monotonic())
            _log.warning("planner: %s was not done: %s", order.action.view(), error)


def status_of(member: Member, monotonic_less_unix_s: float, now_s: float) -> WorkerStatus:
    """A worker whose clock is ahead changed its role now, not in the future."""
    worker, load, kv = member.worker, member.load, member.load.kv_blocks
    return WorkerStatus(
        worker.worker_id,
        worker.role,
        member.state in _AT_WORK,
        worker.profile,
        load.queued_tokens,
        load.busy_s,
        load.running,
        load.waiting,
        running_tokens=kv.used * worker.block_size,
        held_tokens=(kv.used + kv.reserved) * worker.block_size,
        cached_tokens=kv.cached * worker.block_size,
        kv_tokens=kv.total * worker.block_size,
        max_running=worker.max_running,
        epoch=worker.epoch,
        role_changes_s=tuple(min(now_s, at_s + monotonic_less_unix_s) for at_s in worker.role_changes_unix_s),
    )
