"""One worker process: an engine, a transfer agent, a role, a gRPC server and a lease."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec

from baton import __version__
from baton.background import run_forever
from baton.discovery import open_registry
from baton.discovery.base import Registration
from baton.engine.engine import Engine
from baton.engine.engine_config import complete
from baton.engine.loop import EngineLoop
from baton.engine.parallel import Shard
from baton.engine.step_room import ChunkLimit
from baton.fleet import ModelInfo, WorkerInfo, WorkerProfile, WorkerState
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.group import TransferGroup
from baton.loaded import spare_what_is_loaded
from baton.rpc import Server, host_port
from baton.worker.config import WorkerConfig
from baton.worker.control import SERVICE as CONTROL
from baton.worker.control import ControlServicer, until_idle
from baton.worker.kv_publisher import KvEventsConfig, KvPublisher
from baton.worker.live_profile import LiveProfile
from baton.worker.membership import Membership
from baton.worker.notices import wait_for_notice
from baton.worker.profile import measure_profile
from baton.worker.ranks import RankGroup, RankProcess
from baton.worker.roles import MountedRole
from baton.worker.transfer import make_agent
from baton.worker.watchdog import Watchdog

_log = logging.getLogger(__name__)
_SERVER_GRACE_S = 1.0


async def run_worker(config: WorkerConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second signal ends it at once. Raises what kept it from
    starting, or what crashed its engine or its membership."""
    stop = _StopSignal()
    async with AsyncExitStack() as cleanup:
        registry = open_registry(config.registry, config.secret, config.registry_access)
        cleanup.push_async_callback(registry.close)
        engine, ranks = await _load(config, stop, cleanup)
        measured = await asyncio.to_thread(measure_profile, engine)
        limit = ChunkLimit(config.prefill.chunk_tokens, config.prefill.chunk_s)
        profile = LiveProfile(replace(measured, cost_per_hour=config.cost_per_hour), limit)
        if stop.first.is_set():  # while the model was being loaded
            return
        agent = _make_agent(config, engine)
        cleanup.callback(agent.close)
        handoffs = TransferGroup([agent, *ranks])
        loop = EngineLoop(stop.crash)
        epoch = secrets.token_bytes(8)
        publisher = _publish_events(config, engine, epoch, stop, cleanup)
        role = MountedRole(config, engine, loop, handoffs, profile)
        cleanup.push_async_callback(asyncio.to_thread, loop.stop)
        server = Server(config.host, config.port, config.secret)
        role.mount(server)
        worker = _announce_events(
            _describe(config, engine, agent, server.port, profile.published(), epoch), config, publisher
        )
        membership = _make_membership(config, registry, worker, role, profile)
        control = ControlServicer(role, membership)
        server.add(CONTROL, control.mount)
        spare_what_is_loaded()
        await server.start()
        cleanup.push_async_callback(server.stop, _SERVER_GRACE_S)
        keeper = run_forever(membership.keep(), "membership", stop.crash)
        watchdog = _watch(config, loop, server, membership)
        run_forever(watchdog, "watchdog", stop.crash)  # to the very end, for a hung engine could prevent it
        if config.spot_notice is not None:
            run_forever(wait_for_notice(config.spot_notice, stop.first.set), "spot notices", stop.crash)
        await stop.first.wait()
        await server.set_serving(False)
        await control.close()
        membership.drain()
        if not await until_idle(role.load, config.drain_timeout_s, stop.second):
            _log.warning("draining ended with requests left")
        keeper.cancel()
        await membership.leave()
    stop.raise_crash()


class _StopSignal:
    """The first signal asks for a drain, the second for the end, the third kills; a crash asks for the end."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self._crash: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)

    def crash(self, error: BaseException) -> None:
        """Callable from any thread."""
        self._crash = self._crash or error
        self._loop.call_soon_threadsafe(self._stop_at_once)

    def raise_crash(self) -> None:
        if self._crash is not None:
            raise self._crash

    def _on_signal(self) -> None:
        if not self.first.is_set():
            self.first.set()
            return
        self.second.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    def _stop_at_once(self) -> None:
        self.first.set()
        self.second.set()


async def _load(
    config: WorkerConfig, stop: _StopSignal, cleanup: AsyncExitStack
) -> tuple[Engine, Sequence[RankProcess]]:
    """The engine, and with tensor parallelism the other ranks, which load at the same time."""
    if config.engine.tp == 1:
        engine = await asyncio.to_thread(Engine, config.engine)
        cleanup.callback(engine.close)
        return engine, ()
    complete_config = await asyncio.to_thread(complete, config.engine)
    group = await asyncio.to_thread(RankGroup, config, complete_config, stop.crash)
    cleanup.push_async_callback(asyncio.to_thread, group.close)
    engine = await asyncio.to_thread(Engine, complete_config, group.parallel)
    cleanup.callback(engine.close)
    await asyncio.to_thread(group.wait_until_ready)
    return engine, group.ranks


def _make_agent(config: WorkerConfig, engine: Engine) -> TransferAgent:
    host = config.advertise_host or config.host
    shard = Shard(config.engine.tp, 0)
    return make_agent(engine.model, engine.pool, shard, config.secret, config.schemes, host, config.kv_port)


def _publish_events(
    config: WorkerConfig, engine: Engine, epoch: bytes, stop: _StopSignal, cleanup: AsyncExitStack
) -> KvPublisher | None:
    """Before the engine's thread starts, so that no change of its cache is missed."""
    if not config.kv_events:
        return None
    own = KvEventsConfig(
        config.host, config.kv_events_port, config.secret, config.worker_id, epoch, config.model_name
    )
    publisher = KvPublisher(own, engine.blocks, stop.crash)
    cleanup.push_async_callback(asyncio.to_thread, publisher.close)
    return publisher


def _announce_events(worker: WorkerInfo, config: WorkerConfig, publisher: KvPublisher | None) -> WorkerInfo:
    if publisher is None:
        return worker
    host = config.advertise_host or config.host
    return replace(
        worker,
        kv_events_address=host_port(host, publisher.port),
        kv_replay_address=host_port(host, publisher.replay_port),
    )


def _describe(
    config: WorkerConfig,
    engine: Engine,
    agent: TransferAgent,
    port: int,
    profile: WorkerProfile,
    epoch: bytes,
) -> WorkerInfo:
    return WorkerInfo(
        worker_id=config.worker_id,
        epoch=epoch,
        role=config.role,
        address=host_port(config.advertise_host or config.host, port),
        pid=os.getpid(),
        model=ModelInfo(
            config.model_name,
            engine.model.fingerprint,
            engine.max_model_tokens,
            engine.model.vocab_size,
            tuple(engine.model.eos_token_ids),
        ),
        kv_layout=msgspec.msgpack.encode(agent.layout),
        block_size=engine.block_size,
        profile=profile,
        version=__version__,
        schemes=agent.schemes,
        max_running=config.decode.max_running,
    )


def _make_membership(
    config: WorkerConfig,
    registry: Registration,
    worker: WorkerInfo,
    role: MountedRole,
    profile: LiveProfile,
) -> Membership:
    def on_registered() -> None:
        _log.info("%s %s serves at %s", role.role.value, worker.worker_id, worker.address)

    return Membership(registry, worker, role.load, profile.published, config.heartbeat_s, on_registered)


async def _watch(config: WorkerConfig, loop: EngineLoop, server: Server, membership: Membership) -> None:
    async def on_stalled(is_stalled: bool) -> None:
        membership.note_stalled(is_stalled)
        await server.set_serving(membership.state is WorkerState.READY)

    await Watchdog(loop, config.step_timeout_s, on_stalled).watch()
