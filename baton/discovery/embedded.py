"""The embedded registry: an in-memory fleet with leases, served over gRPC by the router itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from typing import Any

from grpc import aio

from baton.discovery.preflight import Preflight, believe
from baton.errors import DuplicateWorker, Unavailable
from baton.fleet import Fleet, Member, WorkerInfo, WorkerLoad, WorkerState
from baton.wire import registry_pb2, registry_pb2_grpc
from baton.wire.convert import (
    fleet_to_wire,
    load_from_wire,
    state_from_wire,
    worker_from_wire,
)

MAX_MEMBERS = 10_000
MAX_OFFICES = 100
EVICTION_GRACE_S = 0.25
"""Between the end of a lease and the eviction. Where it was this very event loop that stood still, the
heartbeats that wait to be read are read in the meantime."""

SUSPECTED_SHARE = 1 / 3
"""Of a lease, after which a silent member is suspected: it stays, but others are preferred, and who comes under its
id is believed."""

COALESCE_S = 0.02
"""After a change, for others that come with it: a fleet of many workers reports many times a second."""

SERVICE = registry_pb2.DESCRIPTOR.services_by_name["Registry"].full_name


@dataclass(slots=True)
class _Lease:
    member: Member
    ends_at_s: float


@dataclass(slots=True)
class _Office:
    holder: str
    ends_at_s: float


class EmbeddedRegistry:
    """The fleet, on one event loop. A member whose lease has ended is gone from the next snapshot of a watch.

    A heartbeat that comes late, but before that, renews the lease as any other does.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._offices: dict[str, _Office] = {}
        self._elects_from_s = clock() + lease_s  # until then a holder may be left from before this process
        self._changed = asyncio.Event()

    def register(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> None:
        if worker.worker_id not in self._leases and len(self._leases) >= MAX_MEMBERS:
            raise Unavailable(f"the registry holds {MAX_MEMBERS} workers, its limit")
        self._require_unique(worker)
        self._put(Member(worker, state, load))

    def heartbeat(self, worker_id: str, epoch: bytes, state: WorkerState, load: WorkerLoad) -> bool:
        """False where no lease of this epoch exists."""
        lease = self._leases.get(worker_id)
        if lease is None or lease.member.worker.epoch != epoch:
            return False
        self._put(Member(lease.member.worker, state, load))
        return True

    def deregister(self, worker_id: str, epoch: bytes) -> None:
        lease = self._leases.get(worker_id)
        if lease is not None and lease.member.worker.epoch == epoch:
            del self._leases[worker_id]
            self._notify()

    def fleet(self) -> Fleet:
        now_s = self._clock()
        return Fleet(tuple(self._as_seen(lease, now_s) for lease in self._leases.values()))

    def elect(self, office: str, candidate: str) -> float:
        """The lease in seconds where `candidate` holds `office` from now on, else 0."""
        now_s = self._clock()
        self._offices = {name: held for name, held in self._offices.items() if now_s < held.ends_at_s}
        held = self._offices.get(office)
        if now_s < self._elects_from_s or (held is not None and held.holder != candidate):
            return 0.0
        if held is None and len(self._offices) >= MAX_OFFICES:
            raise Unavailable(f"the registry holds {MAX_OFFICES} offices, its limit")
        self._offices[office] = _Office(candidate, now_s + self.lease_s)
        return self.lease_s

    def resign(self, office: str, candidate: str) -> None:
        held = self._offices.get(office)
        if held is not None and held.holder == candidate:
            del self._offices[office]

    async def watch(self) -> AsyncGenerator[Fleet, None]:
        seen: Fleet | None = None
        while True:
            await self._evict_silent()
            changed = self._changed
            fleet = self.fleet()
            if fleet != seen:
                seen = fleet
                yield fleet
            wait_s = self._until_next_doubt_s()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), wait_s)
                await asyncio.sleep(COALESCE_S)

    def _put(self, member: Member) -> None:
        known = self._leases.get(member.worker.worker_id)
        self._leases[member.worker.worker_id] = _Lease(member, self._clock() + self.lease_s)
        if known is None or known.member != member:
            self._notify()

    def _require_unique(self, worker: WorkerInfo) -> None:
        """Refuses a second process under one id while the first is heard. Another epoch at the same address is the
        same process, or that of a dead one's successor."""
        lease = self._leases.get(worker.worker_id)
        if lease is None or lease.member.worker.epoch == worker.epoch:
            return
        holder = lease.member.worker
        if holder.address != worker.address and self._clock() < self._suspected_from_s(lease):
            raise DuplicateWorker(
                f"worker id {worker.worker_id!r} belongs to the process {holder.pid} at {holder.address}, which "
                "is alive",
                field="worker_id",
            )

    def _as_seen(self, lease: _Lease, now_s: float) -> Member:
        if lease.member.state is WorkerState.READY and now_s >= self._suspected_from_s(lease):
            return replace(lease.member, state=WorkerState.SUSPECTED)
        return lease.member

    def _suspected_from_s(self, lease: _Lease) -> float:
        return lease.ends_at_s - self.lease_s * (1 - SUSPECTED_SHARE)

    def _until_next_doubt_s(self) -> float | None:
        """Seconds until somebody is suspected or evicted for silence; None where nobody is there."""
        now_s = self._clock()
        moments_s = (
            suspected_s if (suspected_s := self._suspected_from_s(lease)) > now_s else lease.ends_at_s
            for lease in self._leases.values()
        )
        next_s = min(moments_s, default=None)
        return None if next_s is None else max(0.0, next_s - now_s) + 0.001

    async def _evict_silent(self) -> None:
        if not self._overdue():
            return
        await asyncio.sleep(EVICTION_GRACE_S)
        for worker_id in self._overdue():
            del self._leases[worker_id]
            self._notify()

    def _overdue(self) -> list[str]:
        now_s = self._clock()
        return [worker_id for worker_id, lease in self._leases.items() if lease.ends_at_s <= now_s]

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class RegistryServicer(registry_pb2_grpc.RegistryServicer):
    """The registry's gRPC edge."""

    def __init__(self, registry: EmbeddedRegistry, preflight: Preflight = believe) -> None:
        """preflight: raises BatonError for a worker that others could not use."""
        self._registry = registry
        self._preflight = preflight

    def mount(self, server: aio.Server) -> None:
        registry_pb2_grpc.add_RegistryServicer_to_server(self, server)

    async def Register(
        self, request: registry_pb2.RegisterRequest, context: aio.ServicerContext[Any, Any]
    ) -> registry_pb2.RegisterReply:
        worker = worker_from_wire(request.worker)
        await self._preflight(worker)
        self._registry.register(worker, state_from_wire(request.state), load_from_wire(request.load))
        return registry_pb2.RegisterReply(lease_s=self._registry.lease_s)

    async def Heartbeat(
        self, request: registry_pb2.HeartbeatRequest, context: aio.ServicerContext[Any, Any]
    ) -> registry_pb2.HeartbeatReply:
        alive = self._registry.heartbeat(
            request.worker_id, request.epoch, state_from_wire(request.state), load_from_wire(request.load)
        )
        return registry_pb2.HeartbeatReply(lease_is_live=alive)

    async def Deregister(
        self, request: registry_pb2.DeregisterRequest, context: aio.ServicerContext[Any, Any]
    ) -> registry_pb2.DeregisterReply:
        self._registry.deregister(request.worker_id, request.epoch)
        return registry_pb2.DeregisterReply()

    async def Watch(
        self, request: registry_pb2.WatchRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[registry_pb2.FleetSnapshot, None]:
        async for fleet in self._registry.watch():
            yield fleet_to_wire(fleet)

    async def Elect(
        self, request: registry_pb2.ElectRequest, context: aio.ServicerContext[Any, Any]
    ) -> registry_pb2.ElectReply:
        return registry_pb2.ElectReply(held_s=self._registry.elect(request.office, request.candidate))

    async def Resign(
        self, request: registry_pb2.ResignRequest, context: aio.ServicerContext[Any, Any]
    ) -> registry_pb2.ResignReply:
        self._registry.resign(request.office, request.candidate)
        return registry_pb2.ResignReply()


class OwnOffices:
    """The offices of the registry that this very process serves."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        self._registry = registry

    async def elect(self, office: str, candidate: str) -> float:
        return self._registry.elect(office, candidate)

    async def resign(self, office: str, candidate: str) -> None:
        self._registry.resign(office, candidate)
