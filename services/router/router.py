"""The router process: registry, workers, request flow, HTTP."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from functools import partial

import uvicorn

from baton.background import OnCrash, run_forever
from baton.discovery import open_registry
from baton.discovery.base import Membership, Offices
from baton.discovery.election import Candidacy
from baton.discovery.embedded import SERVICE, EmbeddedRegistry, OwnOffices, RegistryServicer
from baton.discovery.preflight import require_reachable
from baton.discovery.steady import follow
from baton.errors import Unavailable
from baton.events import EventStream
from baton.loaded import spare_what_is_loaded
from baton.router.api.app import create_app
from baton.router.backend import FleetBackend
from baton.router.breaker_metrics import BreakerCollector
from baton.router.config import RouterConfig
from baton.router.control import FleetControl
from baton.router.elastic import Decision, Elastic, PlannerMode, PlannerSettings
from baton.router.event_log import EventLog
from baton.router.kv_index_metrics import KvIndexCollector
from baton.router.metrics import RouterMetrics
from baton.router.request_flow import RequestFlow
from baton.router.scalers import open_scaler
from baton.router.session_metrics import SessionCollector
from baton.router.sessions import Sessions
from baton.router.tokenizer import TextProcessor
from baton.router.workers import Workers
from baton.rpc import Server

_GRPC_GRACE_S = 1.0
_HTTP_GRACE_S = 1
"""For the last bytes of answers that are complete."""

_DRAIN_POLL_S = 0.05
_KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections (httpx: 5 s, aiohttp: 15 s, nginx: 60 s), so that it is never the
server who closes one that a client is just using again."""


async def run_router(config: RouterConfig) -> None:
    """Serves until SIGTERM or SIGINT, then lets requests finish for up to `drain_timeout_s`; a second signal
    ends it at once. Raises what kept it from starting, or what crashed one of its background tasks."""
    text = await asyncio.to_thread(TextProcessor.from_folder, config.model)
    http_socket = _bind(config.host, config.port)
    async with AsyncExitStack() as cleanup:
        cleanup.callback(http_socket.close)
        registry, offices = await _open_registry(config, cleanup)
        crash: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        on_crash = partial(_set_first, crash)
        workers = Workers(config.secret, config.router_id, on_crash)
        cleanup.push_async_callback(workers.close)
        follower = run_forever(workers.follow(follow(registry)), "the registry's watcher", on_crash)
        cleanup.callback(follower.cancel)
        control = FleetControl(workers, config.secret)
        candidacy = Candidacy(offices, "planner", config.router_id)
        views = _Views()
        flow = RequestFlow(workers, views.events, config.flow)
        elastic = Elastic(
            config.planner,
            lambda: workers.members,
            control,
            lambda: candidacy.is_leader,
            views.on_decision,
            open_scaler(config.planner.scaler),
            lambda: flow.waiting_tokens,
        )
        sessions = Sessions(lambda: workers.channels, lambda: workers.members)
        backend = FleetBackend(workers, flow, config, control, elastic, sessions)
        metrics = _metrics(config, workers, sessions)
        views.add(metrics)
        if config.event_log is not None:
            log = EventLog(config.event_log)
            cleanup.callback(log.close)
            views.add(log)
        await _plan(config.planner, elastic, candidacy, on_crash, cleanup)
        app = create_app(backend, text, replace(config.api, metrics=metrics.text))
        http = _HttpServer(app, backend, config)
        crash.add_done_callback(lambda _: http.stop_at_once())
        spare_what_is_loaded()
        await http.serve(sockets=[http_socket])
        if crash.done():
            raise crash.result()


async def _plan(
    settings: PlannerSettings,
    elastic: Elastic,
    candidacy: Candidacy,
    on_crash: OnCrash,
    cleanup: AsyncExitStack,
) -> None:
    """Starts the planner, and where it may act the campaign for its office, which comes first at the end."""
    tasks = [run_forever(elastic.run(), "the planner", on_crash)]
    if settings.mode is not PlannerMode.ADVISE:
        tasks.append(run_forever(candidacy.run(), "the planner's election", on_crash))
    for task in tasks:
        cleanup.push_async_callback(_cancelled, task)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _open_registry(config: RouterConfig, cleanup: AsyncExitStack) -> tuple[Membership, Offices]:
    """A client of the registry that the configuration names, or the router's own, served to its workers."""
    if config.registry:
        client = open_registry(config.registry, config.secret, config.registry_access)
        cleanup.push_async_callback(client.close)
        return client, client
    registry = EmbeddedRegistry(config.lease_s)
    try:
        server = Server(config.registry_host, config.registry_port, config.secret)
    except Unavailable as error:
        raise Unavailable(error.message, field="registry_port") from error
    server.add(SERVICE, RegistryServicer(registry, require_reachable).mount)
    await server.start()
    cleanup.push_async_callback(server.stop, _GRPC_GRACE_S)
    return registry, OwnOffices(registry)


class _Views:
    """What is told of every request's events and of the planner's decisions."""

    def __init__(self) -> None:
        self.events = EventStream()
        self._views: list[RouterMetrics | EventLog] = []

    def add(self, view: RouterMetrics | EventLog) -> None:
        self.events.subscribe(view.on_event)
        self._views.append(view)

    def on_decision(self, decision: Decision) -> None:
        for view in self._views:
            view.on_decision(decision)


def _metrics(config: RouterConfig, workers: Workers, sessions: Sessions) -> RouterMetrics:
    return RouterMetrics(
        lambda: workers.members,
        lambda: config.served_model_names[0],
        KvIndexCollector(lambda: workers.caches.stats),
        BreakerCollector(workers.breakers),
        SessionCollector(lambda: sessions.counts),
    )


def _set_first(crash: asyncio.Future[BaseException], error: BaseException) -> None:
    if not crash.done():
        crash.set_result(error)


class _HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling, which would stop listening at once and end the process before the
    clean-up. The first signal drains: who asks meanwhile hears 503, and 200 on /live. The second ends it."""

    def __init__(self, app: object, backend: FleetBackend, config: RouterConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_HTTP_GRACE_S,
            )
        )
        self._backend = backend
        self._drain_timeout_s = config.drain_timeout_s
        self._drain: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def stop_at_once(self) -> None:
        self.should_exit = self.force_exit = True

    def _on_signal(self) -> None:
        if self._drain is None:
            self._drain = asyncio.create_task(self._drain_and_exit())
        else:
            self.stop_at_once()

    async def _drain_and_exit(self) -> None:
        self._backend.drain()
        deadline_s = time.monotonic() + self._drain_timeout_s
        while not self.should_exit:
            self.should_exit = not self._backend.under_way or time.monotonic() >= deadline_s
            await asyncio.sleep(_DRAIN_POLL_S)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    http_socket = socket.socket(family, socket.SOCK_STREAM)
    http_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        http_socket.bind((host, port))
    except OSError as error:
        http_socket.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error
    return http_socket
