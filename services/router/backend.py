"""The fleet as the HTTP face sees it (`baton.router.api.backend.Backend`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass

from baton import __version__
from baton.errors import Unavailable
from baton.fleet import HandoffTotals, KVBlocks, Member, ModelInfo, Role, WorkerProfile
from baton.request import GenerationRequest
from baton.router.api.backend import ServedModel
from baton.router.breaker import Standing
from baton.router.config import RouterConfig
from baton.router.control import FleetControl, RoleChange
from baton.router.elastic import Elastic
from baton.router.generation_config import sampling_defaults
from baton.router.request_flow import RequestFlow
from baton.router.run import Run
from baton.router.sessions import FinishedSession, Sessions
from baton.router.workers import Workers


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker in the answer of /workers. breaker: this router's, "closed" unless the worker failed again and
    again. kv_events: where it publishes them, empty where it does not.
    prefix_knowledge: what the router has of its prefix cache, "exact" from these or "approximate" from routing."""

    id: str
    role: str
    state: str
    breaker: str
    pid: int
    address: str
    running: int
    waiting: int
    queued_tokens: int
    kv_blocks: KVBlocks
    kv_bytes_sent: int
    kv_bytes_received: int
    schemes: tuple[str, ...]
    handoffs: HandoffTotals
    preemptions: int
    profile: WorkerProfile
    model: str
    block_size: int
    epoch: str
    version: str
    kv_events: str
    prefix_knowledge: str


class FleetBackend:
    """Serves one model, the one that the first worker brought; remembers it while no worker is there."""

    def __init__(
        self,
        workers: Workers,
        flow: RequestFlow,
        config: RouterConfig,
        control: FleetControl,
        elastic: Elastic,
        sessions: Sessions,
    ) -> None:
        self._workers = workers
        self._flow = flow
        self._config = config
        self._control = control
        self._elastic = elastic
        self._sessions = sessions
        self._created = int(time.time())
        self._sampling_defaults = sampling_defaults(config.model)
        self._last_model: ModelInfo | None = None
        self._is_draining = False

    @property
    def under_way(self) -> int:
        """Requests that have not ended."""
        return self._flow.under_way

    def drain(self) -> None:
        """From now on this router finishes what it has."""
        self._is_draining = True

    @property
    def model(self) -> ServedModel:
        self._last_model = self._workers.model or self._last_model
        if self._last_model is None:
            raise Unavailable("no worker has joined yet")
        model, names = self._last_model, self._config.served_model_names
        return ServedModel(
            model_id=names[0],
            created=self._created,
            max_model_tokens=model.max_model_tokens,
            vocab_size=model.vocab_size,
            eos_token_ids=frozenset(model.eos_token_ids),
            aliases=names[1:],
            sampling_defaults=self._sampling_defaults,
        )

    def start(self, request: GenerationRequest) -> AbstractAsyncContextManager[Run]:
        if self._is_draining:
            raise Unavailable("this router is draining")
        return self._flow.start(request)

    def fleet(self) -> Sequence[WorkerView]:
        caches, breakers = self._workers.caches, self._workers.breakers()
        return [
            _view(member, breakers[member.worker.worker_id], caches.is_exact(member.worker.worker_id))
            for member in self._workers.members
        ]

    async def change_role(self, worker_id: str, role: Role, drain_timeout_s: float) -> RoleChange:
        return await self._control.change_role(worker_id, role, drain_timeout_s)

    async def finish_session(self, session_key: bytes) -> FinishedSession:
        return await self._sessions.finish(session_key)

    def is_ready(self) -> bool:
        return not self._is_draining and self._workers.can_serve()

    def is_live(self) -> bool:
        return True

    def server_info(self) -> Mapping[str, object]:
        return {
            "version": __version__,
            "router_id": self._config.router_id,
            "limits": asdict(self._config.flow),
            "lease_s": self._config.lease_s,
            "workers": len(self._workers.members),
            "planner": None if self._elastic.last is None else self._elastic.last.view(),
            "waiting": self._flow.waiting,
        }


def _view(member: Member, breaker: Standing, is_exact: bool) -> WorkerView:
    worker, load = member.worker, member.load
    return WorkerView(
        id=worker.worker_id,
        role=worker.role.value,
        state=member.state.value,
        breaker=breaker.value,
        pid=worker.pid,
        address=worker.address,
        running=load.running,
        waiting=load.waiting,
        queued_tokens=load.queued_tokens,
        kv_blocks=load.kv_blocks,
        kv_bytes_sent=load.kv_bytes_sent,
        kv_bytes_received=load.kv_bytes_received,
        schemes=worker.schemes,
        handoffs=load.handoffs,
        preemptions=load.preemptions,
        profile=worker.profile,
        model=worker.model.name,
        block_size=worker.block_size,
        epoch=worker.epoch.hex(),
        version=worker.version,
        kv_events=worker.kv_events_address,
        prefix_knowledge="exact" if is_exact else "approximate",
    )
