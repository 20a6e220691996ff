"""The kill campaign's sister on several hosts: workers are cut off from everybody, stopped and killed, routers are
killed, and Consul is cut off or comes back empty, while clients ask without a pause.

Every answer has exactly the tokens of an undisturbed run. Only who had asked a router that died asks again. Within
five seconds of Consul's return all have met again. A failure prints the seed and what was done; `--campaign-seed`
runs it again.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from cluster import BASELINE_S, is_at_baseline, wait_until
from kill_campaign.crowd import Crowd, bodies
from kill_campaign.hosts import fleet_on_hosts
from kill_campaign.outages import LENGTHS_S, START_S, Outage, Outages
from kill_campaign.views import Views

PAUSE_S = (0.5, 2.0)
LONGER_THAN_A_LEASE_S = (3.5, 4.5)
Chosen = Callable[[Outages], Iterable[Outage]]


def run(
    model: Path, seed: int, choose: Chosen, clients: int, kinds: int, lengths_s: tuple[float, float]
) -> None:
    """kinds: of requests, each learned before."""
    rng = random.Random(seed)
    with fleet_on_hosts(model) as hosts, Views(hosts.urls) as views:
        crowd = Crowd(hosts.urls, bodies(kinds, max_tokens=96))
        outages = Outages(hosts, views, rng, crowd.note_router_end, lengths_s)

        def story() -> str:
            told = [f"seed {seed}", *outages.schedule, str(crowd.counts), *outages.faults, *crowd.faults[:10]]
            for request_id in crowd.late:
                told += [f"late: {request_id}", *hosts.life(request_id)]
            return "\n".join([*told, f"{views.workers()}", hosts.stderr])

        wait_until(outages.is_whole, START_S, story)
        asyncio.run(campaign(crowd, outages, choose(outages), clients))
        print(*outages.schedule, crowd.counts, sep="\n")
        assert not crowd.faults, story()
        assert crowd.counts["answered exactly"] > clients, story()
        wait_until(lambda: at_baseline(views), BASELINE_S, story)
        wait_until(outages.is_whole, START_S, story)
        wait_until(lambda: at_baseline(views), BASELINE_S, story)  # of the latecomers as well
        assert not outages.faults, story()


async def campaign(crowd: Crowd, outages: Outages, chosen: Iterable[Outage], clients: int) -> None:
    await crowd.learn()
    asking = asyncio.create_task(crowd.ask(clients, outages.rng))
    await outages.make(chosen, PAUSE_S)
    crowd.stop()
    await asking


def at_baseline(views: Views) -> bool:
    return all(is_at_baseline(worker) for view in views.workers() for worker in view)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--campaign-seed") or secrets.randbits(31))


@pytest.mark.timeout(240)
def test_a_cut_cable_and_an_empty_consul_cost_a_client_no_more_than_a_pause(llama: Path, seed: int) -> None:
    run(llama, seed, Outages.of_the_network, clients=8, kinds=4, lengths_s=LONGER_THAN_A_LEASE_S)


@pytest.mark.soak
def test_no_outage_costs_a_client_more_than_a_pause(
    llama: Path, seed: int, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--outages")
    run(llama, seed, lambda outages: outages.of_all_kinds(count), clients=32, kinds=12, lengths_s=LENGTHS_S)
