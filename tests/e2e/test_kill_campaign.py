"""The kill campaign: processes die and stall at every station of a hand-off while clients ask without a pause.

Every answer has exactly the tokens of an undisturbed run. Only who had asked a router that died asks again. At the
end all pools are at their baseline. All the while, for root, /dev/shm has no byte left. A failure prints the seed
and what was done; `--campaign-seed` runs it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.mounts import under_full_shared_memory
from kill_campaign.troubles import WORKERS, Troubles
from kill_campaign.views import Views
from process_tree import descendants

CLIENTS = 32
WHOLE_AGAIN_S = 120.0
"""Far more than it takes: a process that starts needs three seconds of a core, which a busy machine may be slow to
give."""

FLEET = {
    "routers": 2,
    "prefill": 2,
    "decode": 3,
    "kv_blocks": 512,
    "max_restarts": 1_000_000,
    "restart_window": 2.0,
    "log_level": "warning",
}


def run(model: Path, folder: Path, seed: int, kinds: int, kills: int, pause_s: tuple[float, float]) -> None:
    """kinds: of requests, each learned before."""
    event_log = folder / "events.jsonl"
    with Cluster(*under_full_shared_memory(), model=model, event_log=event_log, **FLEET) as cluster:
        crowd = Crowd(cluster.urls, bodies(kinds, max_tokens=96))
        troubles = Troubles(cluster, random.Random(seed), event_log, crowd.note_router_end)
        asyncio.run(campaign(crowd, troubles, kills, pause_s))

        def story() -> str:
            told = [f"seed {seed}", *troubles.schedule, str(crowd.counts), *crowd.faults[:10]]
            return "\n".join([*told, *processes(cluster), cluster.stderr[-4000:]])

        print(*troubles.schedule, crowd.counts, sep="\n")
        assert not crowd.faults, story()
        assert crowd.counts["answered exactly"] > CLIENTS, story()
        with Views(cluster.urls) as views:
            wait_until(lambda: is_whole(cluster, views), WHOLE_AGAIN_S, story)
        cluster.processes = descendants(cluster.process.pid)
        cluster.wait_for_baseline()


async def campaign(crowd: Crowd, troubles: Troubles, kills: int, pause_s: tuple[float, float]) -> None:
    await crowd.learn()
    asking = asyncio.create_task(crowd.ask(CLIENTS, troubles.rng))
    await troubles.make(kills, pause_s)
    crowd.stop()
    await asking


def processes(cluster: Cluster) -> list[str]:
    """What runs of the cluster, to be shown with a failure."""
    return [f"{process.pid} {process.command}" for process in descendants(cluster.process.pid)]


def is_whole(cluster: Cluster, views: Views) -> bool:
    """Every router knows every worker by the process that is there now."""
    alive = {process.pid for process in descendants(cluster.process.pid)}
    return all(
        {worker["id"] for worker in view if worker["pid"] in alive and worker["state"] == "ready"}
        == set(WORKERS)
        for view in views.workers()
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--campaign-seed") or secrets.randbits(31))


@pytest.mark.timeout(240)
def test_no_kill_costs_a_client_more_than_a_pause(llama: Path, tmp_path: Path, seed: int) -> None:
    run(llama, tmp_path, seed, kinds=12, kills=5, pause_s=(0.1, 0.5))


@pytest.mark.soak
def test_three_hundred_kills_cost_no_client_more_than_a_pause(
    llama: Path, tmp_path: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    kills = request.config.getoption("--kills")
    run(llama, tmp_path, seed, kinds=24, kills=kills, pause_s=(0.1, 3.0))
