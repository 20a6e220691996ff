"""A real cluster: `baton up` with its router and workers, each a process of its own, spoken to over HTTP."""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx
from process_tree import descendants, shared_memory

Prompt = str | Sequence[int] | Sequence[Sequence[int]]

BASELINE_S = 2.0
"""Within this time of a request's end every pool has to be as it was."""

_READY_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 30.0
_HTTP_TIMEOUT_S = 60.0
_REPORTS_S = 0.6
"""Longer than two heartbeats of a worker."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a completion over one prompt."""

    body: Mapping[str, Any]
    headers: httpx.Headers

    @property
    def choices(self) -> Sequence[Mapping[str, Any]]:
        return sorted(self.body["choices"], key=lambda choice: choice["index"])

    @property
    def token_ids(self) -> list[int]:
        return list(self.choices[0]["token_ids"])

    @property
    def finish_reason(self) -> str:
        return str(self.choices[0]["finish_reason"])

    @property
    def usage(self) -> Mapping[str, Any]:
        usage: Mapping[str, Any] = self.body["usage"]
        return usage

    @property
    def cached_tokens(self) -> int:
        return int(self.usage["prompt_tokens_details"]["cached_tokens"])

    @property
    def prefill(self) -> str:
        return self.headers["x-baton-prefill"]

    @property
    def decode(self) -> str:
        return self.headers["x-baton-decode"]


class Cluster:
    """`baton up` with `options` (`kv_blocks=64` is `--kv-blocks=64`), from its ready line to Ctrl-C. within: the
    command that runs it, where it is to run somewhere else.

    Leaving the context stops it as a user would, and asserts that nothing of it is left.
    """

    def __init__(self, *within: str, **options: object) -> None:
        self._within = within
        self._options: dict[str, object] = {"threads": 1, "port": 0, "log_level": "info"} | options
        self._shared_memory = shared_memory()
        self._stderr = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed by `kill`

    def __enter__(self) -> Self:
        self.process = start_baton("up", self._options, stderr=self._stderr, within=self._within)
        try:
            self.urls = self._ready_line().removeprefix("baton ready at ").strip().split(", ")
        except BaseException:
            self.kill()
            raise
        self.url = self.urls[0]
        self.client = httpx.Client(
            base_url=self.url,
            timeout=_HTTP_TIMEOUT_S,
            trust_env=False,
            limits=httpx.Limits(max_connections=64),
        )
        self.processes = descendants(self.process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if error is None and self.process.poll() is None:
                self.wait_for_baseline(steady_s=_REPORTS_S)
                self.stop()
        finally:
            self.kill()

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def stop(self) -> None:
        """Ctrl-C; the cluster has to end well and to leave no process and no shared memory."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(_STOP_TIMEOUT_S)
        assert status == 0, f"baton up ended with status {status}:\n{self.stderr}"
        self.assert_nothing_is_left()

    def assert_nothing_is_left(self) -> None:
        wait_until(lambda: not self._left_over(), BASELINE_S, self._left_over)

    def kill(self) -> None:
        """Ends what may still run of this cluster after a test has failed."""
        for process in [*descendants(self.process.pid), *getattr(self, "processes", [])]:
            if process.is_alive:
                os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        if hasattr(self, "client"):
            self.client.close()

    def workers(self) -> dict[str, dict[str, Any]]:
        """What /workers tells of each worker, by id."""
        workers = self.client.get("/workers").raise_for_status().json()["workers"]
        return {worker["id"]: worker for worker in workers}

    def worker(self, role: str) -> dict[str, Any]:
        """The only worker of `role`."""
        [worker] = [worker for worker in self.workers().values() if worker["role"] == role]
        return worker

    def pids(self) -> dict[str, int]:
        return {worker_id: worker["pid"] for worker_id, worker in self.workers().items()}

    def metric(self, name: str) -> float:
        """A metric without labels."""
        for line in self.client.get("/metrics").raise_for_status().text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"/metrics has no {name}")

    def events(self) -> list[dict[str, Any]]:
        """The event log so far, of a cluster with the option `event_log`."""
        path = self._options["event_log"]
        assert isinstance(path, Path)
        return [json.loads(line) for line in path.read_text().splitlines()]

    def wait_for_baseline(self, timeout_s: float = BASELINE_S, steady_s: float = 0.0) -> None:
        """Waits until no worker has work or holds memory, and has not for `steady_s`: a worker's report may be
        from before the work."""
        began_at_s = idle_since_s = time.monotonic()
        while True:
            now_s = time.monotonic()
            if busy := self._busy_workers():
                assert now_s < began_at_s + timeout_s, f"after {timeout_s:g} s: {busy}"
                idle_since_s = math.inf
            else:
                idle_since_s = min(idle_since_s, now_s)
                if now_s >= idle_since_s + steady_s:
                    return
            time.sleep(0.02)

    def new_shared_memory(self) -> set[str]:
        return shared_memory() - self._shared_memory

    def post(self, prompt: Prompt, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """A greedy completion of 64 tokens, unless `fields` say otherwise."""
        return self.client.post("/v1/completions", json=_completion(prompt, fields), headers=headers)

    def stream(self, prompt: Prompt, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of such a completion, as they come."""
        body = _completion(prompt, fields | {"stream": True})
        with self.client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == httpx.codes.OK
            for line in response.iter_lines():
                if line and line != "data: [DONE]":
                    yield json.loads(line.removeprefix("data: "))

    def complete(self, prompt: Prompt, **fields: Any) -> Answer:
        response = self.post(prompt, **fields)
        assert response.status_code == httpx.codes.OK, response.text
        return Answer(response.json(), response.headers)

    def complete_all(self, requests: Iterable[Mapping[str, Any]]) -> list[Answer]:
        """Answers to requests that are under way at the same time."""
        bodies = list(requests)
        with ThreadPoolExecutor(len(bodies)) as threads:
            return list(threads.map(lambda body: self.complete(**body), bodies))

    def _ready_line(self) -> str:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(_READY_TIMEOUT_S):
                raise AssertionError(f"not ready after {_READY_TIMEOUT_S} s:\n{self.stderr}")
        line = self.process.stdout.readline()
        assert line, f"baton up ended with status {self.process.wait()}:\n{self.stderr}"
        return line

    def _busy_workers(self) -> list[dict[str, Any]]:
        return [worker for worker in self.workers().values() if not is_at_baseline(worker)]

    def _left_over(self) -> list[str]:
        return [process.command for process in self.processes if process.is_alive] + sorted(
            self.new_shared_memory()
        )


def _completion(prompt: Prompt, fields: Mapping[str, Any]) -> dict[str, Any]:
    body = {
        "prompt": prompt,
        "max_tokens": 64,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    return body | dict(fields)


def start_baton(
    command: str,
    options: Mapping[str, object],
    environment: Mapping[str, str] | None = None,
    *,
    stderr: IO[str] | int,
    within: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """`baton COMMAND` with `options`, in an environment without any BATON_ variable but those given. within: a
    command that becomes the one that it is given, as `ip netns exec NAME`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [*within, sys.executable, "-P", "-m", "baton.cli", command, *flags],
        env=inherited | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def wait_until(condition: Callable[[], bool], timeout_s: float, describe: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"after {timeout_s:g} s: {describe()}"
        time.sleep(0.02)


def is_at_baseline(worker: Mapping[str, Any]) -> bool:
    blocks: Mapping[str, int] = worker["kv_blocks"]
    return bool(
        worker["running"] == worker["waiting"] == 0
        and blocks["used"] == blocks["reserved"] == 0
        and blocks["free"] + blocks["cached"] == blocks["total"]
    )
