"""A worker's or another router's way to the registry that a router serves (`embedded`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Self

from baton.discovery.base import RegistryAccess, RegistryAddress
from baton.errors import ConfigError, InvalidRequest
from baton.fleet import Fleet, WorkerInfo, WorkerLoad, WorkerState
from baton.rpc import CONTROL_TIMEOUT_S, Channel, host_port
from baton.wire import registry_pb2, registry_pb2_grpc
from baton.wire.convert import fleet_from_wire, load_to_wire, state_to_wire, worker_to_wire

WATCH_TIMEOUT_S = 3600.0


class EmbeddedRegistryClient:
    """A worker's or another router's way to a router's embedded registry at `address` (host:port)."""

    @classmethod
    def open(cls, address: RegistryAddress, secret: bytes, access: RegistryAccess) -> Self:
        where = host_port(address.host, address.port)
        if address.path:
            raise ConfigError(f"the embedded registry at {where} has no {address.path!r}", field="registry")
        if access.token or access.ca or access.certificate:
            raise ConfigError(
                f"the embedded registry at {where} takes no token and no certificates, only the fleet's secret",
                field="registry",
            )
        return cls(where, secret)

    def __init__(self, address: str, secret: bytes) -> None:
        self._channel = Channel(address, secret)
        self._stub = registry_pb2_grpc.RegistryStub(self._channel.grpc)
        self._timeout_s = CONTROL_TIMEOUT_S
        self._registered: WorkerInfo | None = None

    async def register(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> float:
        request = registry_pb2.RegisterRequest(
            worker=worker_to_wire(worker), state=state_to_wire(state), load=load_to_wire(load)
        )
        async with self._channel.errors_translated():
            reply = await self._stub.Register(
                request, timeout=CONTROL_TIMEOUT_S, metadata=self._channel.metadata
            )
        if reply.lease_s <= 0:
            raise InvalidRequest(f"the registry grants a lease of {reply.lease_s} s", field="lease_s")
        self._timeout_s = min(
            CONTROL_TIMEOUT_S, reply.lease_s / 2
        )  # one lost heartbeat must not cost the lease
        self._registered = worker
        return reply.lease_s

    async def heartbeat(self, worker: WorkerInfo, state: WorkerState, load: WorkerLoad) -> bool:
        """A worker that is no longer what it registered as, its profile say, registers again: beats are short."""
        if self._registered not in (None, worker):
            await self.register(worker, state, load)
            return True
        request = registry_pb2.HeartbeatRequest(
            worker_id=worker.worker_id,
            epoch=worker.epoch,
            state=state_to_wire(state),
            load=load_to_wire(load),
        )
        async with self._channel.errors_translated():
            reply = await self._stub.Heartbeat(
                request, timeout=self._timeout_s, metadata=self._channel.metadata
            )
        return reply.lease_is_live

    async def deregister(self, worker: WorkerInfo) -> None:
        request = registry_pb2.DeregisterRequest(worker_id=worker.worker_id, epoch=worker.epoch)
        async with self._channel.errors_translated():
            await self._stub.Deregister(request, timeout=self._timeout_s, metadata=self._channel.metadata)

    async def watch(self) -> AsyncGenerator[Fleet, None]:
        """Ends with Unavailable when the registry is gone; one call lasts at most an hour."""
        call = self._stub.Watch(
            registry_pb2.WatchRequest(), timeout=WATCH_TIMEOUT_S, metadata=self._channel.metadata
        )
        async with self._channel.errors_translated():
            async for snapshot in call:
                yield fleet_from_wire(snapshot)

    async def elect(self, office: str, candidate: str) -> float:
        request = registry_pb2.ElectRequest(office=office, candidate=candidate)
        async with self._channel.errors_translated():
            reply = await self._stub.Elect(request, timeout=self._timeout_s, metadata=self._channel.metadata)
        return reply.held_s

    async def resign(self, office: str, candidate: str) -> None:
        request = registry_pb2.ResignRequest(office=office, candidate=candidate)
        async with self._channel.errors_translated():
            await self._stub.Resign(request, timeout=self._timeout_s, metadata=self._channel.metadata)

    async def close(self) -> None:
        await self._channel.close()
