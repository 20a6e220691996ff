"""What routers may ask of this worker while it serves: a change of its role, the end of a session."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from grpc import aio

from baton.errors import InvalidRequest, Unavailable
from baton.fleet import Role, WorkerLoad, WorkerState
from baton.wire import control_pb2, control_pb2_grpc
from baton.wire.convert import role_from_wire
from baton.worker.membership import Membership
from baton.worker.roles import MountedRole

SERVICE = control_pb2.DESCRIPTOR.services_by_name["Control"].full_name
MAX_DRAIN_TIMEOUT_S = 3600.0

_log = logging.getLogger(__name__)
_DRAIN_POLL_S = 0.02


class ControlServicer(control_pb2_grpc.ControlServicer):
    """A change of role: draining, in whatever role -> switched -> announced; one at a time."""

    def __init__(self, role: MountedRole, membership: Membership) -> None:
        self._role = role
        self._membership = membership
        self._target = role.role
        self._change: asyncio.Task[control_pb2.ChangeRoleReply] | None = None

    def mount(self, server: aio.Server) -> None:
        control_pb2_grpc.add_ControlServicer_to_server(self, server)

    async def ChangeRole(
        self, request: control_pb2.ChangeRoleRequest, context: aio.ServicerContext[Any, Any]
    ) -> control_pb2.ChangeRoleReply:
        role = role_from_wire(request.role)
        if not 0 <= request.drain_timeout_s <= MAX_DRAIN_TIMEOUT_S:
            raise InvalidRequest(
                f"drain_timeout_s is {request.drain_timeout_s}, not within 0 to {MAX_DRAIN_TIMEOUT_S:g}",
                field="drain_timeout_s",
            )
        if self._change is None:
            if role is self._role.role:
                return control_pb2.ChangeRoleReply()
            if self._membership.state is WorkerState.DRAINING:
                raise Unavailable("this worker is leaving the fleet")
            self._target = role
            self._change = asyncio.create_task(self._change_to(role, request.drain_timeout_s))
            self._change.add_done_callback(self._on_changed)
        elif role is not self._target:
            raise Unavailable(f"this worker is becoming a {self._target.value} worker")
        return await asyncio.shield(self._change)

    async def FinishSession(
        self, request: control_pb2.FinishSessionRequest, context: aio.ServicerContext[Any, Any]
    ) -> control_pb2.FinishSessionReply:
        if not request.session_key:
            raise InvalidRequest("session_key is empty", field="session_key")
        blocks = await self._role.finish_session(request.session_key)
        return control_pb2.FinishSessionReply(blocks=blocks)

    async def close(self) -> None:
        """Gives up a change that is under way."""
        if self._change is not None:
            self._change.cancel()
            await asyncio.wait([self._change])

    async def _change_to(self, role: Role, drain_timeout_s: float) -> control_pb2.ChangeRoleReply:
        asked_at_s = time.monotonic()
        self._membership.drain()
        await until_idle(self._role.load, drain_timeout_s, asyncio.Event())
        drained_at_s = time.monotonic()
        await self._role.switch(role)
        await self._membership.rejoin(role)
        announced_at_s = time.monotonic()
        return control_pb2.ChangeRoleReply(
            drained_s=drained_at_s - asked_at_s, switched_s=announced_at_s - drained_at_s
        )

    def _on_changed(self, task: asyncio.Task[control_pb2.ChangeRoleReply]) -> None:
        self._change = None
        if not task.cancelled() and task.exception() is None:
            _log.info("this is a %s worker now", self._role.role.value)


async def until_idle(load: Callable[[], WorkerLoad], timeout_s: float, stop: asyncio.Event) -> bool:
    """Waits until no request is left; False where the timeout passed, or `stop` was set, before that."""
    deadline_s = time.monotonic() + timeout_s
    while (now := load()).running + now.waiting > 0:
        if time.monotonic() >= deadline_s or stop.is_set():
            return False
        await asyncio.sleep(_DRAIN_POLL_S)
    return True
