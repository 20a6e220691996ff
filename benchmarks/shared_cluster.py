"""A router and workers of which each has a share of a core, whatever the others do."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cpu_share import cpu_share

from baton.cli.ports import free_ports
from baton.fleet import Role

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 180.0
_POLL_S = 0.2
_DRAIN_S = 1.0
_STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Shares:
    """model: a folder. cores: CPU time of each worker. worker_flags, router_flags: further options of theirs."""

    model: Path
    cores: float
    worker_flags: Sequence[str] = ()
    router_flags: Sequence[str] = ()


@contextmanager
def running(shares: Shares, prefill: int, decode: int) -> Iterator[str]:
    """The URL of a cluster of so many workers, from when all have joined. They measure their profiles at their
    shares. Raises NoCpuQuota, or RuntimeError where it does not come up."""
    http_port, registry_port = free_ports(_HOST, 2)
    url = f"http://{_HOST}:{http_port}"
    names = {f"{role.value}-{n}": role for role, count in _counts(prefill, decode) for n in range(count)}
    with ExitStack() as stack:
        hold = {name: stack.enter_context(cpu_share(f"baton-{name}", shares.cores)) for name in names}
        environment = os.environ | {"BATON_SECRET": secrets.token_hex(32)}
        model = f"--model={shares.model}"
        ports = [f"--port={http_port}", f"--registry-port={registry_port}"]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_stop, processes)
        processes.append(_start(["router", model, *ports, *shares.router_flags], environment))
        for name, role in names.items():
            flags = [model, f"--registry={_HOST}:{registry_port}", f"--worker-id={name}", "--threads=1"]
            processes.append(_start([role.value, *flags, *shares.worker_flags], environment))
            hold[name](processes[-1].pid)
        _wait_until_joined(url, len(names), processes)
        yield url


def _counts(prefill: int, decode: int) -> list[tuple[Role, int]]:
    return [(Role.PREFILL, prefill), (Role.DECODE, decode)]


def _start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "baton.cli", *arguments]
    return subprocess.Popen([*command, "--log-level=error", f"--drain-timeout={_DRAIN_S}"], env=environment)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """All at once, the router first: it is to look for none of the others."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_joined(url: str, workers: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    with httpx.Client(base_url=url, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            for process in processes:
                if process.poll() is not None:
                    raise RuntimeError(f"{process.args!r} ended before the cluster was ready")
            if _joined(client) == workers:
                return
            time.sleep(_POLL_S)
    raise RuntimeError(f"not ready after {_START_TIMEOUT_S:g} s, the limit")


def _joined(client: httpx.Client) -> int:
    try:
        answer = client.get("/workers")
    except httpx.TransportError:
        return 0
    return sum(worker["state"] == "ready" for worker in answer.json()["workers"]) if answer.is_success else 0
