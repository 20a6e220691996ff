"""A real Consul agent in development mode, in memory: killed and started again on the same ports it is empty."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

_PORTS = range(10_000, 32_768)  # below what Linux takes for outgoing connections
_START_TIMEOUT_S = 20.0
_DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""Not by a preexec_fn: gRPC's threads may hold a lock at the moment of the fork."""


def consul_binary() -> str:
    """Skips the test where there is none."""
    folder = Path(sys.prefix) / "consul-agent"
    binary = shutil.which("consul") or shutil.which(folder / "consul")
    if binary is None:
        missing = folder / "missing"
        reason = missing.read_text().strip() if missing.exists() else "`make test` fetches one"
        pytest.skip(f"there is no consul here: {reason}")
    return binary


class ConsulAgent:
    """From `start` to `kill`; as a context, both."""

    def __init__(
        self,
        configuration: Mapping[str, Any] | None = None,
        scheme: str = "http",
        host: str = "127.0.0.1",
        network: str = "",
    ) -> None:
        """scheme: of the port that `address` names. configuration: beside the ports, in Consul's own words.
        network: the network namespace, one of `ip netns`, in which `host` is its address."""
        self._binary = consul_binary()
        http, server, serf = free_ports(3)
        self.address = f"{host}:{http}"
        self._enter = ["ip", "netns", "exec", network] if network else []
        self._http_name = scheme
        ports = {"http": -1, "dns": -1, "grpc": -1, "server": server, "serf_lan": serf, "serf_wan": -1}
        self._configuration = {
            "bind_addr": host,
            "client_addr": host,
            "ports": ports | {scheme: http},
            **(configuration or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `__exit__`

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        """Until it has a leader, and so can be written to."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(self._configuration, file)
            file.flush()
            self._process = subprocess.Popen(
                [
                    *_DIE_WITH_US,
                    *self._enter,
                    self._binary,
                    "agent",
                    "-dev",
                    f"-config-file={file.name}",
                    "-log-level=warn",
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
            )
            self._wait_until_writable()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _wait_until_writable(self) -> None:
        assert self._process is not None
        url = f"{self._http_name}://{self.address}/v1/status/leader"
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, f"consul has ended:\n{self._read_log()}"
            if self._has_leader(url):
                return
            time.sleep(0.05)
        raise AssertionError(f"consul has no leader after {_START_TIMEOUT_S} s:\n{self._read_log()}")

    def _has_leader(self, url: str) -> bool:
        """A port that wants our certificate is listening, which has to do."""
        try:
            answer = httpx.get(url, trust_env=False, verify=False, timeout=1.0)
        except (httpx.TransportError, ssl.SSLError) as error:
            return "certificate" in str(error).lower()
        return answer.status_code == httpx.codes.OK and len(answer.text.strip('"\n')) > 0

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()


def free_ports(count: int) -> list[int]:
    """For TCP and UDP both: Consul's gossip takes the two."""
    found: list[int] = []
    for port in random.sample(_PORTS, 100):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
