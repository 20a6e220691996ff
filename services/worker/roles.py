"""Mounts a role on an engine: the scheduler that the engine's thread runs, and the servicer that feeds it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from baton.decode import servicer as decode_servicer
from baton.decode.scheduler import DecodeScheduler
from baton.engine.engine import Engine
from baton.engine.loop import EngineLoop
from baton.fleet import Role, WorkerLoad
from baton.kvtransfer.group import Handoffs
from baton.prefill import servicer as prefill_servicer
from baton.prefill.scheduler import PrefillScheduler
from baton.rpc import Server
from baton.worker.config import WorkerConfig
from baton.worker.live_profile import LiveProfile
from baton.worker.timed_scheduler import TimedScheduler


class MountedRole:
    """One of two roles at a time over one engine, whose weights, pool and prefix cache outlast the change."""

    def __init__(
        self, config: WorkerConfig, engine: Engine, loop: EngineLoop, agent: Handoffs, profile: LiveProfile
    ) -> None:
        """Starts the engine's thread in the role of `config`; its steps correct `profile`."""
        self.role = config.role
        self._profile = profile
        self._config = config
        self._engine = engine
        self._loop = loop
        self._agent = agent
        self._prefill = prefill_servicer.PrefillServicer(engine, loop, agent)
        self._decode = decode_servicer.DecodeServicer(engine, loop, agent)
        self._scheduler = self._make_scheduler(self.role)
        loop.start(self._timed(self._scheduler))
        self._attach()

    def mount(self, server: Server) -> None:
        """Adds the services of both roles; the one that is not mounted answers Unavailable."""
        server.add(prefill_servicer.SERVICE, self._prefill.mount)
        server.add(decode_servicer.SERVICE, self._decode.mount)

    def load(self) -> WorkerLoad:
        """Readable from any thread."""
        return replace(self._scheduler.load(), busy_s=self._loop.busy_s)

    async def switch(self, role: Role) -> None:
        """Ends what the role has left, by Unavailable, and mounts `role`."""
        (self._prefill if self.role is Role.PREFILL else self._decode).detach()
        event_loop = asyncio.get_running_loop()
        is_switched: asyncio.Future[PrefillScheduler | DecodeScheduler] = event_loop.create_future()

        def make() -> TimedScheduler:
            scheduler = self._make_scheduler(role)
            event_loop.call_soon_threadsafe(is_switched.set_result, scheduler)
            return self._timed(scheduler)

        self._loop.switch(make)
        self._scheduler = await is_switched
        self.role = role
        self._attach()

    async def finish_session(self, session_key: bytes) -> int:
        """Between two steps: see `baton.engine.block_manager.BlockManager.finish_session`."""
        event_loop = asyncio.get_running_loop()
        finished: asyncio.Future[int] = event_loop.create_future()

        def settle(blocks: int) -> None:
            if not finished.done():  # by a caller that has given up
                finished.set_result(blocks)

        def finish() -> None:
            event_loop.call_soon_threadsafe(settle, self._engine.blocks.finish_session(session_key))

        self._loop.post(finish)
        return await finished

    def _make_scheduler(self, role: Role) -> PrefillScheduler | DecodeScheduler:
        if role is Role.PREFILL:
            return PrefillScheduler(
                self._engine,
                self._agent,
                self._config.prefill,
                lambda tail: self._profile.note_tail(*tail),
                self._profile.corrected,
            )
        return DecodeScheduler(
            self._engine,
            self._agent,
            self._config.decode,
            self._loop.post,
            self._decode.on_reports,
            self._profile.corrected,
        )

    def _timed(self, scheduler: PrefillScheduler | DecodeScheduler) -> TimedScheduler:
        return TimedScheduler(scheduler, self._engine, self._profile)

    def _attach(self) -> None:
        if isinstance(self._scheduler, PrefillScheduler):
            self._prefill.attach(self._scheduler)
        else:
            self._decode.attach(self._scheduler)
