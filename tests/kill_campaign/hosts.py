"""A fleet on several hosts: every process in a network of its own, and a Consul in one as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
from cluster import BASELINE_S, start_baton, wait_until
from consul_agent import ConsulAgent
from kill_campaign.network import Network, networked
from process_tree import descendants, shared_memory

ROUTERS = ("router-0", "router-1")
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
CONSUL = "consul"

_SECRET = "0123456789abcdef" * 4
_HTTP_PORT = 8000
_STOP_S = 30.0
_KEPT_STDERR = 4000


@contextmanager
def fleet_on_hosts(model: Path) -> Iterator[Hosts]:
    """Every process has to end well when the context is left in peace, and ends anyway."""
    with (
        tempfile.TemporaryDirectory() as events,
        tempfile.TemporaryFile("w+") as stderr,
        ThreadPoolExecutor(1) as keeper,
        networked(*ROUTERS, *WORKERS, CONSUL) as network,
        ConsulAgent(host=network.address(CONSUL), network=network.namespace(CONSUL)) as consul,
    ):
        hosts = Hosts(model, network, consul, keeper, Path(events), stderr)
        try:
            hosts.start()
            yield hosts
            hosts.stop()
        finally:
            hosts.kill_all()


class Hosts:
    """`urls`: of the routers. `pids`: of every process of the fleet by its name, now. KV blocks go over tcp, as
    between hosts: shm would go past the cables."""

    def __init__(
        self,
        model: Path,
        network: Network,
        consul: ConsulAgent,
        keeper: Executor,
        events: Path,
        stderr: IO[str],
    ) -> None:
        """keeper: of one thread, in which Consul is started again, for an agent dies with its thread. events: a
        folder for the routers' event logs. stderr: of all processes."""
        self.consul = consul
        self.urls = [f"http://{network.address(name)}:{_HTTP_PORT}" for name in ROUTERS]
        self._model = model
        self._network = network
        self._keeper = keeper
        self._events = events
        self._stderr = stderr
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._shared_memory = shared_memory()

    def start(self) -> None:
        for name in (*ROUTERS, *WORKERS):
            self._start(name)

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-_KEPT_STDERR:]

    def life(self, request_id: str) -> list[str]:
        """What the routers' event logs tell of a request: when, where it had come, which workers it was with."""
        told = []
        for router in ROUTERS:
            for line in (self._events / router).read_text().splitlines():
                event: dict[str, Any] = json.loads(line)
                if event.get("request_id") == request_id:
                    shown = ("time", "transition", "prefill", "decode", "code", "reason")
                    told.append(f"{router} " + " ".join(str(event[name]) for name in shown if name in event))
        return told

    def cut(self, name: str) -> None:
        self._network.cut(name)

    def heal(self, name: str) -> None:
        self._network.heal(name)

    def kill(self, name: str) -> None:
        """Without a warning; another takes its place."""
        self._processes[name].kill()
        self._reap(name)
        self._start(name)

    def start_consul(self) -> None:
        """Again, and empty."""
        self._keeper.submit(self.consul.start).result()

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pids[name], number)

    def passing(self) -> set[str]:
        """The workers whose leases Consul takes for live; none while it cannot be asked."""
        url = f"http://{self.consul.address}/v1/health/service/campaign-workers?passing"
        try:
            entries = httpx.get(url, trust_env=False).raise_for_status().json()
        except httpx.TransportError:
            return set()
        return {entry["Service"]["ID"].removeprefix("campaign-workers:") for entry in entries}

    def _start(self, name: str) -> None:
        command = name.partition("-")[0]
        options: dict[str, object] = {
            "model": self._model,
            "registry": f"consul://{self.consul.address}/campaign",
            "log_level": "warning",
            "host": self._network.address(name),
        }
        if command == "router":
            options |= {"port": _HTTP_PORT, "disaggregation": "always", "event_log": self._events / name}
        else:
            options |= {"worker_id": name, "threads": 1, "kv_blocks": 512, "transport": "tcp"}
        within = ["ip", "netns", "exec", self._network.namespace(name)]
        secret = {"BATON_SECRET": _SECRET}
        self._processes[name] = start_baton(command, options, secret, stderr=self._stderr, within=within)

    def stop(self) -> None:
        """Every process is told to end, has to end well, and has to leave nothing."""
        children = [child for pid in self.pids.values() for child in descendants(pid)]
        for process in self._processes.values():
            process.terminate()
        ends = {name: process.wait(_STOP_S) for name, process in self._processes.items()}
        assert set(ends.values()) == {0}, f"{ends}\n{self.stderr}"

        def left() -> list[str]:
            return [c.command for c in children if c.is_alive] + sorted(shared_memory() - self._shared_memory)

        wait_until(lambda: not left(), BASELINE_S, left)

    def kill_all(self) -> None:
        for name, process in self._processes.items():
            process.kill()
            self._reap(name)

    def _reap(self, name: str) -> None:
        process = self._processes[name]
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
