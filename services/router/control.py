"""Changes that a router makes to its fleet: a worker's role."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from baton.errors import InvalidRequest, Unavailable
from baton.fleet import Member, Role, WorkerState
from baton.router.workers import Workers
from baton.rpc import CONTROL_TIMEOUT_S, Channel
from baton.wire import control_pb2, control_pb2_grpc
from baton.wire.convert import role_to_wire

DEFAULT_DRAIN_TIMEOUT_S = 30.0

_MAY_SERVE = (WorkerState.READY, WorkerState.SUSPECTED)


@dataclass(frozen=True, slots=True)
class RoleChange:
    """drained_s: until the worker had no request left. switched_s: from there until it was announced; both on its
    own clock, and 0 where it had the role already."""

    worker_id: str
    role: str
    drained_s: float
    switched_s: float


class FleetControl:
    """Acts on the workers that `workers` follows. On the router's event loop."""

    def __init__(self, workers: Workers, secret: bytes) -> None:
        self._workers = workers
        self._secret = secret

    async def change_role(
        self, worker_id: str, role: Role, drain_timeout_s: float = DEFAULT_DRAIN_TIMEOUT_S
    ) -> RoleChange:
        """Makes a worker serve in `role`; returns once this router sees it there. Its streams move to other
        workers, and what is left after `drain_timeout_s` goes on elsewhere by itself.

        Raises InvalidRequest for a worker that is not here and for the last decode worker, and what keeps the
        worker from changing.
        """
        member = self._member(worker_id)
        self._require_another(member, role)
        channel = Channel(member.worker.address, self._secret)
        request = control_pb2.ChangeRoleRequest(role=role_to_wire(role), drain_timeout_s=drain_timeout_s)
        timeout_s = drain_timeout_s + 2 * CONTROL_TIMEOUT_S
        try:
            async with channel.errors_translated():
                stub = control_pb2_grpc.ControlStub(channel.grpc)
                reply = await stub.ChangeRole(request, timeout=timeout_s, metadata=channel.metadata)
            await self._until_seen(worker_id, role)
        finally:
            await channel.close()
        return RoleChange(worker_id, role.value, reply.drained_s, reply.switched_s)

    def _member(self, worker_id: str) -> Member:
        for member in self._workers.members:
            if member.worker.worker_id == worker_id:
                return member
        raise InvalidRequest(f"worker {worker_id!r:.200} is not in the fleet", field="worker_id")

    def _require_another(self, member: Member, role: Role) -> None:
        """Raises InvalidRequest where the fleet would be left without a decode worker."""
        others = [
            other
            for other in self._workers.members
            if other.worker.role is Role.DECODE and other.state in _MAY_SERVE and other is not member
        ]
        if member.worker.role is Role.DECODE and role is not Role.DECODE and not others:
            raise InvalidRequest(
                f"{member.worker.worker_id} is the last decode worker: nothing could serve without it",
                field="role",
            )

    async def _until_seen(self, worker_id: str, role: Role) -> None:
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                while not self._workers.has_ready(worker_id, role):
                    await self._workers.changed()
        except TimeoutError:
            raise Unavailable(
                f"{worker_id} has changed its role, but was not seen so within {CONTROL_TIMEOUT_S:g} s"
            ) from None
