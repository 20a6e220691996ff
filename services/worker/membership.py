"""Keeps a worker's lease: registers, beats, registers again when the registry has forgotten it. Every beat carries
the load, and the profile where live figures have corrected it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from baton.discovery.base import Registration
from baton.errors import BatonError, Unauthorized
from baton.fleet import WorkerInfo, WorkerLoad, WorkerProfile, WorkerState

_log = logging.getLogger(__name__)
_RETRY_S = 0.25


class Membership:
    """`state` may be set at any time; the next heartbeat carries it."""

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
        self._complaint = ""

    def drain(self) -> None:
        self.state = WorkerState.DRAINING
        self._beat_now.set()

    def note_stalled(self, is_stalled: bool) -> None:
        """A worker that is leaving says no more than that, stalled or not."""
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.STALLED if is_stalled else WorkerState.READY
            self._beat_now.set()

    async def keep(self) -> None:
        """Runs until cancelled. A registry that cannot be reached is asked again; serving goes on. Raises
        Unauthorized where the very first registration is refused for its secret: asking again cannot help."""
        is_member = was_member = False
        while True:
            self._worker = replace(self._worker, profile=self._profile())
            try:
                if is_member:
                    is_member = await self._registry.heartbeat(self._worker, self.state, self._load())
                else:
                    await self._registry.register(self._worker, self.state, self._load())
                    is_member = was_member = True
                    self._complaint = ""
                    self._on_registered()
            except BatonError as error:
                if isinstance(error, Unauthorized) and not was_member:
                    raise
                self._complain(error)
                is_member = False
            await self._pause(self._heartbeat_s if is_member else _RETRY_S)

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
