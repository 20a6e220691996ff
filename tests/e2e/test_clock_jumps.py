"""Wall clocks that jump by hours, in each process for itself: nobody loses a request, a lease or a deadline."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import BASELINE_S, is_at_baseline, start_baton, wait_until
from consul_agent import free_ports
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.views import Views
from shifted_clocks import ShiftedClock, build_shifted_clock

HOURS_S = 5 * 3600
JUMPS_S = (HOURS_S, -HOURS_S, 0)
"""Ahead of the real time, one after the other; the last is the jump back to it."""

WORKERS = ("prefill-0", "decode-0")
MAX_REQUESTS = 4
MAX_QUEUE = 4
QUEUE_TIMEOUT_S = 3.0
START_S = 90.0
LEAVES_WITHIN_S = 10.0
STOP_S = 20.0

_SECRET = {"BATON_SECRET": "0123456789abcdef" * 4}


class Fleet:
    """A router with its embedded registry and a worker of each role, each with a wall clock of its own."""

    def __init__(self, model: Path, folder: Path, cleanup: ExitStack) -> None:
        library = build_shifted_clock(folder)
        http_port, registry_port = free_ports(2)
        self.url = f"http://127.0.0.1:{http_port}"
        self.clocks = {name: ShiftedClock(library, folder / name) for name in ("router", *WORKERS)}
        self._model = model
        self._cleanup = cleanup
        self._stderr = cleanup.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - entered
        self.processes = {
            "router": self._start(
                "router",
                port=http_port,
                registry_port=registry_port,
                disaggregation="always",
                max_requests=MAX_REQUESTS,
                max_queue=MAX_QUEUE,
                queue_timeout=QUEUE_TIMEOUT_S,
            )
        }
        for name in WORKERS:
            worker = {"worker_id": name, "registry": f"127.0.0.1:{registry_port}"}
            self.processes[name] = self._start(name, **worker, threads=1, kv_blocks=2048)
        self._views = cleanup.enter_context(Views([self.url]))
        wait_until(lambda: len(self.workers()) == len(WORKERS), START_S, self.stderr)

    def workers(self) -> dict[str, dict[str, Any]]:
        return {worker["id"]: worker for worker in self._views.workers()[0]}

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60.0, trust_env=False)

    def complete(self, **body: Any) -> httpx.Response:
        return self.post("/v1/completions", **{"prompt": [5, 6, 7], "ignore_eos": True} | body)

    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-4000:]

    def _start(self, name: str, **options: object) -> subprocess.Popen[str]:
        command, options = name.partition("-")[0], {"model": self._model, "log_level": "info"} | options
        environment = _SECRET | dict(self.clocks[name].environment)
        process = start_baton(command, options, environment, stderr=self._stderr)
        assert process.stdout is not None
        for release in (process.stdout.close, process.wait, process.kill):
            self._cleanup.callback(release)
        return process


@pytest.fixture(scope="module")
def lasting_fleet(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with ExitStack() as cleanup:
        yield Fleet(llama, tmp_path_factory.mktemp("clocks"), cleanup)


@pytest.fixture
def fleet(lasting_fleet: Fleet) -> Iterator[Fleet]:
    """Shared; its clocks are right at the begin of each test."""
    yield lasting_fleet
    for clock in lasting_fleet.clocks.values():
        clock.jump_to(0)


@pytest.fixture
def doomed_fleet(llama: Path, tmp_path: Path) -> Iterator[Fleet]:
    """Of a test that ends its processes."""
    with ExitStack() as cleanup:
        yield Fleet(llama, tmp_path, cleanup)


def test_no_request_and_no_worker_is_lost_to_clocks_that_jump(fleet: Fleet) -> None:
    before = {name: worker["epoch"] for name, worker in fleet.workers().items()}
    crowd = Crowd([fleet.url], bodies(8, max_tokens=64))

    async def jump_about() -> None:
        for name, clock in fleet.clocks.items():
            for shift_s in JUMPS_S:
                clock.jump_to(shift_s)
                answers = crowd.counts["answered exactly"]
                async with asyncio.timeout(START_S):
                    while crowd.counts["answered exactly"] < answers + 2 * MAX_REQUESTS:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
                there = await asyncio.to_thread(fleet.workers)
                assert {n: worker["epoch"] for n, worker in there.items()} == before, (name, shift_s)

    async def campaign() -> None:
        await crowd.learn()
        asking = asyncio.create_task(crowd.ask(MAX_REQUESTS, random.Random(1)))
        try:
            await jump_about()
        finally:
            crowd.stop()
            await asking

    asyncio.run(campaign())
    assert not crowd.faults, (crowd.faults[:5], fleet.stderr())
    wait_until(lambda: all(map(is_at_baseline, fleet.workers().values())), BASELINE_S, fleet.workers)


@pytest.mark.parametrize("shift_s", [HOURS_S, -HOURS_S])
def test_an_answer_bears_its_routers_time(fleet: Fleet, shift_s: int) -> None:
    fleet.clocks["router"].jump_to(shift_s)
    created = fleet.complete(max_tokens=2).json()["created"]
    assert created == pytest.approx(time.time() + shift_s, abs=HOURS_S / 2)


@pytest.mark.parametrize("shift_s", [HOURS_S, -HOURS_S])
def test_a_session_is_finished_on_all_workers(fleet: Fleet, shift_s: int) -> None:
    assert fleet.complete(max_tokens=2, prompt=list(range(5, 70)), session_id=f"{shift_s}").is_success
    for clock in fleet.clocks.values():
        clock.jump_to(shift_s)
    finished = fleet.post("/finish_session", session_id=f"{shift_s}").json()
    assert finished["blocks"] > 0
    assert finished["unconfirmed"] == []


def test_who_finds_no_place_is_told_at_once_and_who_waits_neither_at_once_nor_hours_later(
    fleet: Fleet,
) -> None:
    long = {"prompt": [5, 6, 7], "max_tokens": 1900, "n": 4, "ignore_eos": True, "stream": True}
    with ExitStack() as streams, ThreadPoolExecutor(MAX_QUEUE + 1) as clients:
        for _ in range(MAX_REQUESTS):
            stream = httpx.stream("POST", f"{fleet.url}/v1/completions", json=long, trust_env=False)
            assert streams.enter_context(stream).is_success
        fleet.clocks["router"].jump_to(-HOURS_S)
        asked_at_s = time.monotonic()
        asked = [clients.submit(fleet.complete, max_tokens=2) for _ in range(MAX_QUEUE + 1)]
        for shift_s in (HOURS_S, -HOURS_S):
            time.sleep(QUEUE_TIMEOUT_S / 4)
            fleet.clocks["router"].jump_to(shift_s)
        *late, turned_away = sorted((one.result() for one in asked), key=lambda answer: answer.status_code)
        assert time.monotonic() >= asked_at_s + QUEUE_TIMEOUT_S
        assert {answer.status_code for answer in late} == {httpx.codes.REQUEST_TIMEOUT}
        assert turned_away.status_code == httpx.codes.TOO_MANY_REQUESTS
        assert 1 <= int(turned_away.headers["retry-after"]) <= QUEUE_TIMEOUT_S


@pytest.mark.parametrize("shift_s", [HOURS_S, -HOURS_S])
def test_a_worker_changes_its_role_and_back(fleet: Fleet, shift_s: int) -> None:
    fleet.clocks["router"].jump_to(shift_s)
    fleet.clocks["prefill-0"].jump_to(-shift_s)
    for role in ("decode", "prefill"):
        answer = fleet.post("/workers/prefill-0/role", role=role, drain_timeout_s=10.0)
        assert answer.is_success, answer.text
        assert fleet.workers()["prefill-0"]["role"] == role


def test_a_dead_workers_lease_ends_and_processes_end_well_though_clocks_went_back(
    doomed_fleet: Fleet,
) -> None:
    for clock in doomed_fleet.clocks.values():
        clock.jump_to(-HOURS_S)
    doomed_fleet.processes["prefill-0"].kill()
    wait_until(lambda: "prefill-0" not in doomed_fleet.workers(), LEAVES_WITHIN_S, doomed_fleet.workers)
    assert doomed_fleet.complete(max_tokens=2).is_success
    for name in ("decode-0", "router"):
        doomed_fleet.processes[name].send_signal(signal.SIGTERM)
        assert doomed_fleet.processes[name].wait(STOP_S) == 0, doomed_fleet.stderr()
