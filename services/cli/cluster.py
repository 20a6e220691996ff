"""`baton up`: starts routers and workers, says when they are ready, keeps them running, ends them all."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice

import httpx
from rich.console import Console

from baton.cli.ports import free_ports
from baton.cli.scale_desk import ScaleDesk
from baton.cli.supervision import RestartLimits
from baton.cli.supervisor import Post, Supervisor
from baton.errors import InvalidRequest, Unavailable
from baton.fleet import Role
from baton.loaded import spare_what_is_loaded
from baton.rpc import host_port

Arguments = Mapping[str, object]

_LOOPBACK = "127.0.0.1"
_START_TIMEOUT_S = 300.0
_POLL_S = 0.05
_DRAIN: Arguments = {"drain-timeout": 5.0}


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Options of the processes as `--name value`; None is left out, a list is repeated. port: of the first router;
    each further one has the next, or with 0 all have free ones. cores: those that a worker keeps to, by its id; one
    that is not named may run on any. router_secrets: options that only the environment may show. is_scaled: whether
    routers may have workers started and stopped here."""

    routers: int
    prefill_workers: int
    decode_workers: int
    host: str
    port: int
    api_key: str
    restarts: RestartLimits
    router_args: Arguments
    worker_args: Arguments
    prefill_args: Arguments
    decode_args: Arguments
    cores: Mapping[str, str]
    router_secrets: Mapping[str, str] = field(default_factory=dict)
    is_scaled: bool = False


class Cluster:
    """Runs until Ctrl-C or SIGTERM, or until it can serve no more."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._console = Console(stderr=True)
        self._ports = free_ports(config.host, config.routers, config.port)
        self._urls = [f"http://{host_port(config.host, port)}" for port in self._ports]
        self._supervisor = Supervisor(config.restarts, self._tell)
        self._registry = host_port(_LOOPBACK, free_ports(_LOOPBACK, 1)[0])
        self._environment = {"BATON_SECRET": secrets.token_hex(32)}

    def run(self) -> int:
        """Returns the status to exit with: 0 after a signal, 1 after a failure."""
        spare_what_is_loaded()
        with _signal_as_fd() as stop_fd, self._scale_desk() as desk:
            try:
                self._start({} if desk is None else {"scaler": f"unix:{desk.path}"})
                if not self._wait_until_ready(stop_fd):
                    return 0
                print(f"baton ready at {', '.join(self._urls)}", flush=True)
                if self._supervisor.watch(stop_fd, self._can_serve):
                    return 0
                self._tell("nothing is left that could serve: stopping")
                return 1
            finally:
                self._supervisor.stop()

    @contextmanager
    def _scale_desk(self) -> Iterator[ScaleDesk | None]:
        """Where routers order workers, if they may."""
        if not self._config.is_scaled:
            yield None
            return
        desk = ScaleDesk(self._start_up_to, self._dismiss)
        self._supervisor.listeners[desk.fd] = desk.answer
        try:
            yield desk
        finally:
            desk.close()

    def _start(self, scaler: Arguments) -> None:
        """The first router serves the registry; a registry that is gone for a moment costs the others no worker."""
        config = self._config
        host, port = self._registry.rsplit(":", 1)
        for number, http_port in enumerate(self._ports):
            serve = {"registry-host": host, "registry-port": port}
            registry = {"registry": self._registry} if number else serve
            arguments = _flags({**config.router_args, **scaler, **_DRAIN, **registry, "port": http_port})
            name = "router" if config.routers == 1 else f"router-{number}"
            environment = {**self._environment, **config.router_secrets}
            self._supervisor.start(name, ["router", *arguments], environment)
        for role, workers in ((Role.PREFILL, config.prefill_workers), (Role.DECODE, config.decode_workers)):
            for number in range(workers):
                self._start_worker(role, f"{role.value}-{number}")

    def _start_worker(self, role: Role, name: str) -> None:
        config = self._config
        own = config.prefill_args if role is Role.PREFILL else config.decode_args
        common = {**config.worker_args, **_DRAIN, "registry": self._registry}
        arguments = _flags({**common, **own, "worker-id": name, "cpus": config.cores.get(name)})
        self._supervisor.start(name, [role.value, *arguments], self._environment)

    @property
    def _workers(self) -> list[Post]:
        return [
            post for post in self._supervisor.posts if post.may_serve and not post.name.startswith("router")
        ]

    def _start_up_to(self, role: str, workers: int) -> None:
        taken = {post.name for post in self._supervisor.posts}
        free = (name for number in count() if (name := f"{role}-{number}") not in taken)
        for name in islice(free, max(0, workers - len(self._workers))):
            self._start_worker(Role(role), name)
            self._tell(f"{name} is started at the planner's word")

    def _dismiss(self, worker_id: str) -> None:
        posts = {post.name: post for post in self._supervisor.posts if not post.name.startswith("router")}
        if worker_id not in posts:
            raise InvalidRequest(f"there is no worker {worker_id!r:.200} here", field="worker")
        self._supervisor.dismiss(posts[worker_id])
        self._tell(f"{worker_id} is stopped at the planner's word")

    def _wait_until_ready(self, stop_fd: int) -> bool:
        """False where a signal came first. Raises Unavailable where a process ends or time runs out."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        expected = self._config.prefill_workers + self._config.decode_workers
        with ExitStack() as cleanup:
            status = cleanup.enter_context(self._console.status("starting"))
            selector = cleanup.enter_context(selectors.DefaultSelector())
            selector.register(stop_fd, selectors.EVENT_READ)
            clients = [
                cleanup.enter_context(httpx.Client(base_url=url, trust_env=False)) for url in self._urls
            ]
            while time.monotonic() < deadline_s:
                for post in self._supervisor.posts:
                    if post.child.exit_code is not None:
                        raise Unavailable(f"{post.child.describe_end()} before the cluster was ready")
                views = [self._joined(client) for client in clients]
                joined = min(joined for joined, _ in views)
                status.update(f"loading the model: {joined} of {expected} workers have joined")
                if joined == expected and all(is_ready for _, is_ready in views):
                    return True
                if selector.select(_POLL_S):
                    return False
        raise Unavailable(f"not ready after {_START_TIMEOUT_S:g} s, the limit")

    def _joined(self, client: httpx.Client) -> tuple[int, bool]:
        """How many of our own workers have joined (whoever else answers on this port has others), and whether
        the router can serve."""
        headers = {"Authorization": f"Bearer {self._config.api_key}"} if self._config.api_key else {}
        ours = {post.child.pid for post in self._supervisor.posts}
        try:
            answer = client.get("/workers", headers=headers)
            if answer.is_error:
                return 0, False
            joined = sum(worker["pid"] in ours for worker in answer.json()["workers"])
            return joined, client.get("/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return 0, False

    def _can_serve(self) -> bool:
        """Prefill workers can: one of them becomes a decode worker where none is left."""
        kinds = {post.name.partition("-")[0] for post in self._supervisor.posts if post.may_serve}
        return "router" in kinds and len(kinds) > 1

    def _tell(self, line: str) -> None:
        self._console.print(line, style="red", markup=False, soft_wrap=True)


def _flags(arguments: Arguments) -> Iterator[str]:
    for name, value in arguments.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for single in values:
            if single is not None:
                yield f"--{name}={single}"


@contextmanager
def _signal_as_fd() -> Iterator[int]:
    """A descriptor that becomes readable on SIGINT or SIGTERM."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, lambda *_: os.write(write_fd, b"!")) for number in numbers]
    try:
        yield read_fd
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
        os.close(read_fd)
        os.close(write_fd)
