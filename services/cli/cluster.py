"""`baton up`: starts router and workers, says when they are ready, watches them, ends them all."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from rich.console import Console

from baton.cli.processes import Child
from baton.errors import Unavailable
from baton.rpc import host_port

Arguments = Mapping[str, object]

_LOOPBACK = "127.0.0.1"
_UNPRIVILEGED_PORTS = range(10_000, 32_768)  # below what Linux takes for outgoing connections
_PORT_ATTEMPTS = 100
_START_TIMEOUT_S = 300.0
_POLL_S = 0.05
_STOP_TIMEOUT_S = 10.0
_DRAIN_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Options of the processes as `--name value`; None is left out, a list is repeated. cores: those that a worker
    keeps to, by its id; one that is not named may run on any."""

    prefill_workers: int
    decode_workers: int
    host: str
    port: int
    api_key: str
    router_args: Arguments
    worker_args: Arguments
    prefill_args: Arguments
    decode_args: Arguments
    cores: Mapping[str, str]


class Cluster:
    """Runs until Ctrl-C or SIGTERM, or until it can serve no more."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self._console = Console(stderr=True)
        self._port = _free_port(config.host, config.port)
        self._children: list[Child] = []
        self._url = f"http://{host_port(config.host, self._port)}"

    def run(self) -> int:
        """Returns the status to exit with: 0 after a signal, 1 after a failure."""
        with _signals_as_fd() as stop_fd:
            try:
                self._start()
                if not self._wait_until_ready(stop_fd):
                    return 0
                print(f"baton ready at {self._url}", flush=True)
                return self._watch(stop_fd)
            finally:
                self._stop()

    def _start(self) -> None:
        config = self._config
        registry_port = _free_port(_LOOPBACK)
        environment = {"BATON_SECRET": secrets.token_hex(32)}
        drain = {"drain-timeout": _DRAIN_TIMEOUT_S}
        registry = {"registry-host": _LOOPBACK, "registry-port": registry_port}
        router = {**config.router_args, **drain, **registry, "port": self._port}
        self._children.append(Child("router", ["router", *_flags(router)], environment))
        worker = {**config.worker_args, **drain, "registry": host_port(_LOOPBACK, registry_port)}
        for role, count, own in (
            ("prefill", config.prefill_workers, config.prefill_args),
            ("decode", config.decode_workers, config.decode_args),
        ):
            for number in range(count):
                name = f"{role}-{number}"
                arguments = [
                    role,
                    *_flags({**worker, **own, "worker-id": name, "cpus": config.cores.get(name)}),
                ]
                self._children.append(Child(name, arguments, environment))

    def _wait_until_ready(self, stop_fd: int) -> bool:
        """False where a signal came first. Raises Unavailable where a process ends or time runs out."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        expected = len(self._children) - 1
        with (
            self._console.status("starting") as status,
            httpx.Client(base_url=self._url, trust_env=False) as client,
            _watched([stop_fd]) as selector,
        ):
            while time.monotonic() < deadline_s:
                for child in self._children:
                    if child.exit_code is not None:
                        raise Unavailable(f"{child.describe_end()} before the cluster was ready")
                joined, is_ready = self._joined(client)
                status.update(f"loading the model: {joined} of {expected} workers have joined")
                if joined == expected and is_ready:
                    return True
                if selector.select(_POLL_S):
                    return False
        raise Unavailable(f"not ready after {_START_TIMEOUT_S:g} s, the limit")

    def _joined(self, client: httpx.Client) -> tuple[int, bool]:
        """How many of our own workers have joined (whoever else answers on this port has others), and whether
        the router can serve."""
        headers = {"Authorization": f"Bearer {self._config.api_key}"} if self._config.api_key else {}
        ours = {child.pid for child in self._children}
        try:
            answer = client.get("/workers", headers=headers)
            if answer.is_error:
                return 0, False
            joined = sum(worker["pid"] in ours for worker in answer.json()["workers"])
            return joined, client.get("/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return 0, False

    def _watch(self, stop_fd: int) -> int:
        """Waits for a signal; reports processes that die, and gives up when nothing can be served any more."""
        alive = {child.pidfd: child for child in self._children}
        with _watched([stop_fd, *alive]) as selector:
            while True:
                for key, _ in selector.select():
                    if key.fd == stop_fd:
                        return 0
                    child = alive.pop(key.fd)
                    selector.unregister(key.fd)
                    self._console.print(child.describe_end(), style="red")
                    has_decode = any(c.name.startswith("decode") for c in alive.values())
                    if child.name == "router" or not has_decode:
                        self._console.print("nothing is left that could serve: stopping", style="red")
                        return 1

    def _stop(self) -> None:
        for child in self._children:
            child.terminate()
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for child in self._children:
            child.wait_or_kill(deadline_s)


def _flags(arguments: Arguments) -> Iterator[str]:
    for name, value in arguments.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for single in values:
            if single is not None:
                yield f"--{name}={single}"


def _free_port(host: str, wanted: int = 0) -> int:
    """`wanted`, or with 0 one that is free. Raises Unavailable where it is taken, before anything starts.

    Not one of the ephemeral ports that the system would choose: until the router listens on it, some outgoing
    connection could get the same one.
    """
    if wanted:
        _probe(host, wanted)
        return wanted
    for port in random.sample(_UNPRIVILEGED_PORTS, _PORT_ATTEMPTS):
        with contextlib.suppress(Unavailable):
            _probe(host, port)
            return port
    raise Unavailable(f"none of {_PORT_ATTEMPTS} ports tried on {host} is free", field="port")


def _probe(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}", field="port") from error


@contextmanager
def _signals_as_fd() -> Iterator[int]:
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


@contextmanager
def _watched(descriptors: Sequence[int]) -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        yield selector
