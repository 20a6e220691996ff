"""A fleet on several hosts: every process in a network of its own, and a Consul in one as well."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cluster import BASELINE_S, start_baton, wait_until
from consul_agent import ConsulAgent
from kill_campaign.network import Network
from process_tree import descendants, shared_memory

ROUTERS = ("router-0", "router-1")
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")
CONSUL = "consul"

_SECRET = "0123456789abcdef" * 4
_HTTP_PORT = 8000
_STOP_S = 30.0
_KEPT_STDERR = 4000


class Hosts:
    """From entering to leaving the context. `urls`: of the routers. `pids`: of every process of the fleet by its
    name, now. KV blocks go over tcp, as between hosts: shm would go past the cables."""

    def __init__(self, model: Path) -> None:
        self._cleanup = ExitStack()
        self._events = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory()))
        self._network = Network((*ROUTERS, *WORKERS, CONSUL))
        self.consul = ConsulAgent(host=self._network.address(CONSUL), network=self._network.namespace(CONSUL))
        self.urls = [f"http://{self._network.address(name)}:{_HTTP_PORT}" for name in ROUTERS]
        self._model = model
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._shared_memory = shared_memory()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `__exit__`
        self._keeper = ThreadPoolExecutor(1)  # the agent dies with the thread that has started it

    def __enter__(self) -> Self:
        self._cleanup.callback(self._stderr.close)
        self._cleanup.callback(self._keeper.shutdown)
        try:
            self._cleanup.enter_context(self._network)
            self._cleanup.enter_context(self.consul)
            self._cleanup.callback(self._kill_all)
            for name in (*ROUTERS, *WORKERS):
                self._start(name)
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._stop()
        finally:
            self._cleanup.close()

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

    def _stop(self) -> None:
        """Every process is told to end, has to end well, and has to leave nothing."""
        children = [child for pid in self.pids.values() for child in descendants(pid)]
        for process in self._processes.values():
            process.terminate()
        ends = {name: process.wait(_STOP_S) for name, process in self._processes.items()}
        assert set(ends.values()) == {0}, f"{ends}\n{self.stderr}"

        def left() -> list[str]:
            return [c.command for c in children if c.is_alive] + sorted(shared_memory() - self._shared_memory)

        wait_until(lambda: not left(), BASELINE_S, left)

    def _kill_all(self) -> None:
        for name, process in self._processes.items():
            process.kill()
            self._reap(name)

    def _reap(self, name: str) -> None:
        process = self._processes[name]
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
