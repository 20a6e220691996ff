"""The kill campaign: processes die and stall at every station of a hand-off while clients ask without a pause.

Every answer has exactly the tokens of an undisturbed run. Only who had asked a router that died asks again. At the
end all pools are at their baseline. A failure prints the seed and what was done; `--campaign-seed` runs it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from cluster import Cluster, wait_until
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.troubles import WORKERS, Troubles
from process_tree import descendants

CLIENTS = 32
WHOLE_AGAIN_S = 60.0

FLEET = {
    "routers": 2,
    "prefill": 2,
    "decode": 3,
    "kv_blocks": 512,
    "max_restarts": 1_000_000,
    "restart_window": 2.0,
    "log_level": "warning",
}


def run(
    cluster: Cluster, event_log: Path, seed: int, kills: int, pause_s: tuple[float, float]
) -> Counter[str]:
    rng = random.Random(seed)
    crowd = Crowd(cluster.urls, bodies(24, max_tokens=96))

    def on_router_end(number: int) -> None:
        crowd.router_ends_s.setdefault(number, []).append(time.monotonic())

    troubles = Troubles(cluster, rng, event_log, on_router_end)

    async def campaign() -> None:
        await crowd.learn()
        asking = asyncio.create_task(crowd.ask(CLIENTS, rng))
        await troubles.make(kills, pause_s)
        crowd.stop()
        await asking

    asyncio.run(campaign())
    story = "\n".join([f"seed {seed}", *troubles.schedule, str(crowd.counts), *crowd.faults[:10]])
    print(story)
    assert not crowd.faults, story
    assert crowd.counts["answered exactly"] > CLIENTS, story
    wait_until(lambda: is_whole(cluster), WHOLE_AGAIN_S, lambda: f"{story}\n{cluster.stderr[-4000:]}")
    cluster.processes = descendants(cluster.process.pid)
    cluster.wait_for_baseline()
    return crowd.counts


def is_whole(cluster: Cluster) -> bool:
    """Every router knows every worker by the process that is there now."""
    try:
        views = [httpx.get(f"{url}/workers", trust_env=False).json()["workers"] for url in cluster.urls]
    except httpx.TransportError:
        return False
    alive = {process.pid for process in descendants(cluster.process.pid)}
    return all(
        {worker["id"] for worker in view if worker["pid"] in alive and worker["state"] == "ready"}
        == set(WORKERS)
        for view in views
    )


@pytest.mark.timeout(240)
def test_no_kill_costs_a_client_more_than_a_pause(
    llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--campaign-seed") or secrets.randbits(31)
    event_log = tmp_path / "events.jsonl"
    with Cluster(model=llama, event_log=event_log, **FLEET) as cluster:
        run(cluster, event_log, seed, kills=8, pause_s=(0.1, 1.0))


@pytest.mark.soak
def test_three_hundred_kills_cost_no_client_more_than_a_pause(
    llama: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--campaign-seed") or secrets.randbits(31)
    event_log = tmp_path / "events.jsonl"
    with Cluster(model=llama, event_log=event_log, **FLEET) as cluster:
        run(cluster, event_log, seed, kills=300, pause_s=(0.1, 3.0))
