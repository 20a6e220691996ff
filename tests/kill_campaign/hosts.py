"""A fleet on several hosts: every process in a network of its own (a network namespace), all on one switch (a
bridge) with a Consul, each by a cable that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from cluster import start_baton
from consul_agent import ConsulAgent

ROUTERS = ("router-0", "router-1")
WORKERS = ("prefill-0", "prefill-1", "decode-0", "decode-1")

_SECRET = "0123456789abcdef" * 4
_SUBNET = "198.18.79"  # RFC 2544: set aside for tests of networks
_HTTP_PORT = 8000
_KEPT_STDERR = 4000


class Hosts:
    """`pids`: of every process by its name. Processes begin with `start` and end with `stop`."""

    def __init__(self, model: Path) -> None:
        self.names = (*ROUTERS, *WORKERS)
        self.consul = ConsulAgent(host=f"{_SUBNET}.1")
        self.urls = [f"http://{self._address(name)}:{_HTTP_PORT}" for name in ROUTERS]
        self.pids: dict[str, int] = {}
        registry = f"consul://{self.consul.address}/campaign"
        self._common = {"model": model, "registry": registry, "log_level": "warning"}
        self._processes: list[subprocess.Popen[str]] = []
        self._cleanup = ExitStack()
        self._stderr = self._cleanup.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - entered

    def start(self) -> None:
        self._cleanup.enter_context(_switch(self.names, [self._address(name) for name in self.names]))
        self._cleanup.enter_context(self.consul)
        for name in self.names:
            self._start(name)

    def stop(self) -> None:
        """Every process is told to end, and has to end well."""
        for process in self._processes:
            process.terminate()
        assert [process.wait(30) for process in self._processes] == [0] * len(self._processes), self.stderr

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self._cleanup.close()

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-_KEPT_STDERR:]

    def cut(self, name: str) -> None:
        """At the host's own end: whatever it sends or is sent is lost without a word."""
        _ip("-n", _network(name), "link", "set", "port", "down")

    def heal(self, name: str) -> None:
        _ip("-n", _network(name), "link", "set", "port", "up")

    def _start(self, name: str) -> None:
        command = name.partition("-")[0]
        options = {**self._common, "host": self._address(name)}
        if command == "router":
            options |= {"port": _HTTP_PORT, "disaggregation": "always"}
        else:
            options |= {"worker_id": name, "threads": 1, "kv_blocks": 512}
        network = ["ip", "netns", "exec", _network(name)]
        secret = {"BATON_SECRET": _SECRET}
        process = start_baton(command, options, secret, stderr=self._stderr, within=network)
        self._processes.append(process)
        self.pids[name] = process.pid

    def _address(self, name: str) -> str:
        return f"{_SUBNET}.{2 + self.names.index(name)}"


@contextmanager
def _switch(names: tuple[str, ...], addresses: list[str]) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making network namespaces needs root and iproute2")
    bridge = _network("sw")
    with ExitStack() as cleanup:
        _ip("link", "add", bridge, "type", "bridge")
        cleanup.callback(_ip, "link", "del", bridge)
        _ip("addr", "add", f"{_SUBNET}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            network, near = _network(name), f"{bridge}p{number}"
            _ip("netns", "add", network)
            cleanup.callback(_ip, "netns", "del", network)
            _ip("link", "add", near, "type", "veth", "peer", "name", "port", "netns", network)
            cleanup.callback(_ip, "link", "del", near)
            _ip("link", "set", near, "master", bridge, "up")
            _ip("-n", network, "addr", "add", f"{address}/24", "dev", "port")
            for device in ("port", "lo"):
                _ip("-n", network, "link", "set", device, "up")
        yield


def _network(name: str) -> str:
    """A name that no other run of the tests has; an interface's has at most 15 letters."""
    return f"bk{os.getpid() % 100_000}{name}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
