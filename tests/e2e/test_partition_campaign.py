"""The kill campaign's sister on several hosts: workers cut off or stopped, and a Consul that comes back empty.

Nobody dies, so every request is answered, by the router it asked, with exactly the tokens of an undisturbed run.
A failure prints the seed and what was done; `--campaign-seed` runs it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from pathlib import Path

import httpx
import pytest
from cluster import BASELINE_S, is_at_baseline, wait_until
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.hosts import WORKERS, Hosts
from kill_campaign.outages import LENGTHS_S, Outages

START_S = 90.0
WHOLE_AGAIN_S = 30.0


def run(model: Path, seed: int, outages: int, clients: int, lengths_s: tuple[float, float]) -> None:
    rng = random.Random(seed)
    hosts = Hosts(model, {"disaggregation": "always"})
    crowd = Crowd(hosts.urls, bodies(12, max_tokens=96))
    troubles = Outages(hosts, rng, lengths_s)

    async def campaign() -> None:
        await crowd.learn()
        asking = asyncio.create_task(crowd.ask(clients, rng))
        await troubles.make(outages, pause_s=(0.5, 2.0))
        crowd.stop()
        await asking

    try:
        hosts.start()
        wait_until(lambda: is_whole(hosts), START_S, lambda: hosts.stderr)
        asyncio.run(campaign())
        story = "\n".join([f"seed {seed}", *troubles.schedule, str(crowd.counts), *crowd.faults[:10]])
        print(story)
        assert not crowd.faults, f"{story}\n{hosts.stderr}"
        assert crowd.counts["answered exactly"] > clients, story
        wait_until(lambda: is_whole(hosts), WHOLE_AGAIN_S, lambda: f"{story}\n{hosts.stderr}")
        wait_until(
            lambda: all(is_at_baseline(worker) for worker in workers(hosts.urls[0])),
            BASELINE_S,
            lambda: f"{story}\n{workers(hosts.urls[0])}",
        )
        hosts.stop()
    finally:
        hosts.close()


def workers(url: str) -> list[dict[str, object]]:
    try:
        answer = httpx.get(f"{url}/workers", trust_env=False)
    except httpx.TransportError:
        return []
    return list(answer.raise_for_status().json()["workers"])


def is_whole(hosts: Hosts) -> bool:
    """Every router knows every worker."""
    views = [{w["id"] for w in workers(url) if w["state"] == "ready"} for url in hosts.urls]
    return all(view == set(WORKERS) for view in views)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--campaign-seed") or secrets.randbits(31))


@pytest.mark.soak
def test_no_outage_costs_a_client_more_than_a_pause(llama: Path, seed: int) -> None:
    run(llama, seed, outages=30, clients=16, lengths_s=LENGTHS_S)
