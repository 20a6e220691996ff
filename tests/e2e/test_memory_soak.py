"""An hour of requests, sessions, and workers that join and leave: the memory of the processes that stay stays flat.

`--soak-minutes` makes it shorter; a third of the time, at most ten minutes, is warm-up.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cluster import BASELINE_S, is_at_baseline, start_baton, wait_until
from consul_agent import free_ports
from kill_campaign.churn import Churn
from kill_campaign.views import Views

GROWTH_LIMIT = 0.02
WARM_UP_SHARE, LONGEST_WARM_UP_S = 1 / 3, 600.0
SAMPLE_S = 2.0
STAYS = ("router", "prefill", "decode")
VISIT_S = 15.0
START_S = 120.0
LEAST_REQUESTS_PER_S = 3.0

_SECRET = {"BATON_SECRET": "0123456789abcdef" * 4}


class Fleet:
    """One router, one worker of each role that stays, and at times a guest."""

    def __init__(self, model: Path, cleanup: ExitStack) -> None:
        http_port, registry_port = free_ports(2)
        self.url = f"http://127.0.0.1:{http_port}"
        self._model = model
        self._registry = f"127.0.0.1:{registry_port}"
        self._cleanup = cleanup
        self._stderr = cleanup.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - entered
        router = self._start("router", port=http_port, registry_port=registry_port, disaggregation="always")
        self._views = cleanup.enter_context(Views([self.url]))
        self.pids = {
            "router": router.pid,
            "prefill": self._start_worker("prefill").pid,
            "decode": self._start_worker("decode").pid,
        }
        self.wait_for(2)

    def wait_for(self, workers: int) -> None:
        wait_until(lambda: len(self.workers()) == workers, START_S, self._stderr_so_far)

    def workers(self) -> list[dict[str, Any]]:
        return self._views.workers()[0]

    def visit(self, role: str) -> None:
        """A worker joins, serves for a while, and leaves."""
        guest = self._start_worker(role)
        self.wait_for(3)
        time.sleep(VISIT_S)
        guest.terminate()
        assert guest.wait(START_S) == 0, self._stderr_so_far()
        self.wait_for(2)

    def resident_bytes(self) -> dict[str, int]:
        return {name: _resident_bytes(pid) for name, pid in self.pids.items()}

    def _start_worker(self, role: str) -> subprocess.Popen[str]:
        return self._start(role, registry=self._registry, threads=1, kv_blocks=256)

    def _start(self, command: str, **options: object) -> subprocess.Popen[str]:
        process = start_baton(command, {"model": self._model} | options, _SECRET, stderr=self._stderr)
        assert process.stdout is not None
        for release in (process.stdout.close, process.wait, process.kill):
            self._cleanup.callback(release)
        return process

    def _stderr_so_far(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()[-4000:]


@pytest.fixture
def fleet(llama: Path) -> Iterator[Fleet]:
    with ExitStack() as cleanup:
        yield Fleet(llama, cleanup)


@pytest.mark.soak
def test_memory_stays_flat_through_an_hour_of_churn(fleet: Fleet, request: pytest.FixtureRequest) -> None:
    duration_s = 60.0 * request.config.getoption("--soak-minutes")
    warm_up_s = min(LONGEST_WARM_UP_S, WARM_UP_SHARE * duration_s)
    churn = Churn(fleet.url)
    samples: list[dict[str, int]] = []

    async def visits() -> None:
        while not churn.is_over:
            for role in ("decode", "prefill"):
                await asyncio.to_thread(fleet.visit, role)

    async def soak() -> None:
        tasks = [asyncio.create_task(churn.run()), asyncio.create_task(visits())]
        await asyncio.sleep(warm_up_s)
        ends_at_s = time.monotonic() + duration_s - warm_up_s
        while time.monotonic() < ends_at_s:
            samples.append(fleet.resident_bytes())
            await asyncio.sleep(SAMPLE_S)
        churn.stop()
        await asyncio.gather(*tasks)

    asyncio.run(soak())
    story = [growth_of([sample[name] for sample in samples], name) for name in STAYS]
    print(*(text for _, text in story), churn.counts, sep="\n")
    assert churn.counts.total() > LEAST_REQUESTS_PER_S * duration_s
    assert set(churn.counts) <= {"200", "400", "200, left"}, churn.counts
    assert all(growth < GROWTH_LIMIT for growth, _ in story), [text for _, text in story]
    wait_until(lambda: all(is_at_baseline(w) for w in fleet.workers()), BASELINE_S, fleet.workers)


def growth_of(sizes: Sequence[int], name: str) -> tuple[float, str]:
    """From the median of the first fifth to that of the last, as a share and in words."""
    fifth = max(1, len(sizes) // 5)
    first, last = statistics.median(sizes[:fifth]), statistics.median(sizes[-fifth:])
    growth = last / first - 1
    return (
        growth,
        f"{name}: {first / 2**20:.1f} MiB after warm-up, {last / 2**20:.1f} at the end, {growth:+.2%}",
    )


def _resident_bytes(pid: int) -> int:
    [line] = [n for n in Path(f"/proc/{pid}/status").read_text().splitlines() if n.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024
