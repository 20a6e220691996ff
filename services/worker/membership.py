"""Keeps a worker's lease: registers, beats, registers again when the registry has forgotten it. Every beat carries
the load, and the profile where live figures have corrected it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from baton.discovery.base import Registration
from baton.errors import BatonError, DuplicateWorker, Unauthorized
from baton.fleet import Role, WorkerInfo, WorkerLoad, WorkerProfile, WorkerState

_log = logging.getLogger(__name__)
_RETRY_S = 0.25
_ROLE_CHANGES_TOLD = 32
"""More than a planner's cooldown lets one worker make in an hour."""
_PREDECESSOR_S = 6.0
"""Longer than any lease: by then a process that is dead has lost the id that this one has inherited."""


class Membership:
    """`state` may be set at any time; the next heartbeat carries it. A new role is announced by registering again,
    under the same epoch: the process and its pool are the same."""

    def __init__(
        self,
        registry: Registration,
        worker: WorkerInfo,
        load: Callable[[], WorkerLoad],
        profile: Callable[[], WorkerProfile],
        heartbeat_s: float,
        on_registered: Callable[[], None],
    ) -> None:
        self.state = WorkerState.READY
        self._registry = registry
        self._worker = worker
        self._load = load
        self._profile = profile
        self._heartbeat_s = heartbeat_s
        self._on_registered = on_registered
        self._beat_now = asyncio.Event()
        self._joined_as: Role | None = None
        self._has_joined = asyncio.Event()
        self._complaint = ""

    def drain(self) -> None:
        self.state = WorkerState.DRAINING
        self._beat_now.set()

    async def rejoin(self, role: Role) -> None:
        """Announces the new role, ready for work; returns once the registry has it."""
        changes_s = (*self._worker.role_changes_unix_s, time.time())[-_ROLE_CHANGES_TOLD:]
        self._worker = replace(self._worker, role=role, role_changes_unix_s=changes_s)
        self.state = WorkerState.READY
        self._has_joined.clear()
        self._beat_now.set()
        await self._has_joined.wait()

    def note_stalled(self, is_stalled: bool) -> None:
        """A worker that is leaving says no more than that, stalled or not."""
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.STALLED if is_stalled else WorkerState.READY
            self._beat_now.set()

    async def keep(self) -> None:
        """Runs until cancelled. A registry that cannot be reached is asked again; serving goes on. Raises
        Unauthorized where the very first registration is refused for its secret, and DuplicateWorker where it is
        for longer than a dead predecessor's lease lasts: asking again cannot help."""
        was_member = False
        began_at_s = time.monotonic()
        while True:
            worker = self._worker = replace(self._worker, profile=self._profile())
            try:
                if self._joined_as is worker.role:
                    if not await self._registry.heartbeat(worker, self.state, self._load()):
                        self._joined_as = None
                else:
                    await self._registry.register(worker, self.state, self._load())
                    self._joined_as, was_member = worker.role, True
                    self._complaint = ""
                    if worker.role is self._worker.role:  # it may have changed meanwhile
                        self._has_joined.set()
                    self._on_registered()
            except BatonError as error:
                waited_s = time.monotonic() - began_at_s
                if not was_member and (
                    isinstance(error, Unauthorized)
                    or (isinstance(error, DuplicateWorker) and waited_s > _PREDECESSOR_S)
                ):
                    raise
                self._complain(error)
                self._joined_as = None
            await self._pause(self._heartbeat_s if self._joined_as is self._worker.role else _RETRY_S)

    async def leave(self) -> None:
        try:
            await self._registry.deregister(self._worker)
        except BatonError as error:
            _log.warning("could not deregister, the lease will end by itself: %s", error.message)

    def _complain(self, error: BatonError) -> None:
        """Once for each new reason, not four times a second."""
        if error.message != self._complaint:
            self._complaint = error.message
            _log.warning("registry: %s", error.message)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._beat_now.wait(), seconds)
        except TimeoutError:
            return
        self._beat_now.clear()
