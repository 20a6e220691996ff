"""The kill campaign's sister on several hosts: workers cut off or stopped, and a Consul that comes back empty.

Nobody dies, so every request is answered, by the router it asked, with exactly the tokens of an undisturbed run.
A failure prints the seed and what was done; `--campaign-seed` runs it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import pytest
from cluster import BASELINE_S, is_at_baseline, wait_until
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.hosts import WORKERS, Hosts
from kill_campaign.outages import Outages
from kill_campaign.views import Views

START_S = 90.0
WHOLE_AGAIN_S = 30.0


def run(model: Path, seed: int, outages: int, clients: int) -> None:
    rng = random.Random(seed)
    hosts = Hosts(model)
    crowd = Crowd(hosts.urls, bodies(12, max_tokens=96))
    troubles = Outages(hosts, rng)

    async def campaign() -> None:
        await crowd.learn()
        asking = asyncio.create_task(crowd.ask(clients, rng))
        await troubles.make(outages, pause_s=(0.5, 2.0))
        crowd.stop()
        await asking

    try:
        hosts.start()
        with Views(hosts.urls) as views:
            wait_until(lambda: is_whole(views), START_S, lambda: (views.workers(), hosts.stderr))
            asyncio.run(campaign())
            story = "\n".join([f"seed {seed}", *troubles.schedule, str(crowd.counts), *crowd.faults[:10]])
            print(story)
            assert not crowd.faults, f"{story}\n{hosts.stderr}"
            assert crowd.counts["answered exactly"] > clients, story
            wait_until(lambda: is_whole(views), WHOLE_AGAIN_S, lambda: f"{story}\n{hosts.stderr}")
            wait_until(lambda: at_baseline(views), BASELINE_S, lambda: f"{story}\n{views.workers()}")
        hosts.stop()
    finally:
        hosts.close()


def at_baseline(views: Views) -> bool:
    return all(is_at_baseline(worker) for view in views.workers() for worker in view)


def is_whole(views: Views) -> bool:
    """Every router knows every worker."""
    return all({w["id"] for w in view if w["state"] == "ready"} == set(WORKERS) for view in views.workers())


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--campaign-seed") or secrets.randbits(31))


@pytest.mark.soak
def test_no_outage_costs_a_client_more_than_a_pause(
    llama: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    run(llama, seed, request.config.getoption("--outages"), clients=16)
