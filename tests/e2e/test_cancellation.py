"""Clients that go away, at any moment: whatever their requests held comes back, and who stays is served."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster
from model_folders import prompt_ids
from oracle import assert_equal, reference

CANCELLED = 200
AT_ONCE = 5
LONGEST_DELAY_S = 0.5
MOST_EVENTS = 12


@dataclass(frozen=True, slots=True)
class Departure:
    """When a client closes its connection: after a time, or, where `events` is set, after that many events of
    its stream."""

    prompt_tokens: int
    delay_s: float
    events: int | None
    n: int

    @classmethod
    def draw(cls, rng: random.Random) -> Departure:
        return cls(
            prompt_tokens=rng.choice((20, 300, 900, 1500)),
            delay_s=rng.uniform(0.0, LONGEST_DELAY_S),
            events=rng.choice((None, None, 1, rng.randint(1, MOST_EVENTS))),
            n=rng.choice((1, 1, 1, 3)),
        )


@pytest.fixture(scope="module", params=["shm", "tcp"])
def cluster(
    request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Small chunks and a pool for few requests, so that each stays long in each of its states."""
    event_log = tmp_path_factory.mktemp("cancelled") / "events.jsonl"
    with Cluster(
        model=llama, chunk_tokens=24, kv_blocks=320, transport=request.param, event_log=event_log
    ) as cluster:
        yield cluster


@pytest.mark.timeout(180)
async def test_requests_cancelled_at_random_moments_leave_nothing(cluster: Cluster, llama: Path) -> None:
    rng = random.Random(5)
    departures = [Departure.draw(rng) for _ in range(CANCELLED // 2)]  # for each of the two transports
    places = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as tasks:
        for number, departure in enumerate(departures):
            tasks.create_task(_go_away(cluster.url, departure, number, places))
    cluster.wait_for_baseline(steady_s=0.6)
    expected = reference(llama, 1000)
    assert_equal(cluster.complete(expected.prompt, cache_salt="after"), expected)
    left_in = _states_left_by_cancel(cluster.events())
    assert sum(left_in.values()) > len(departures) // 2
    assert {"placed", "prefilling", "transferring", "decoding"} <= left_in.keys(), left_in


async def test_a_cancelled_long_prompt_does_not_hold_up_the_next_request(
    cluster: Cluster, llama: Path
) -> None:
    """Its remaining chunks are not computed: the queue of prompt tokens is empty right after."""
    client = asyncio.create_task(
        _go_away(cluster.url, Departure(1500, 0.15, None, 1), 999, asyncio.Semaphore(1))
    )
    await client
    expected = reference(llama, 40)
    assert_equal(cluster.complete(expected.prompt, cache_salt="next"), expected)
    cluster.wait_for_baseline()


async def _go_away(url: str, departure: Departure, number: int, places: asyncio.Semaphore) -> None:
    body = {
        "prompt": prompt_ids(departure.prompt_tokens, seed=number),
        "max_tokens": 400,
        "ignore_eos": True,
        "seed": number,
        "n": departure.n,
        "stream": departure.events is not None,
    }
    async with places:
        address = httpx.URL(url)
        reader, writer = await asyncio.open_connection(address.host, address.port)
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nhost: baton\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        if departure.events is None:
            await asyncio.sleep(departure.delay_s)
        else:
            for _ in range(departure.events):
                await reader.readuntil(b"data: ")
        writer.close()
        await writer.wait_closed()


def _states_left_by_cancel(events: list[dict[str, Any]]) -> Counter[str]:
    """In which states requests were when they were cancelled."""
    states: dict[str, str] = {}
    left_in: Counter[str] = Counter()
    for event in events:
        if event["transition"] == "cancel":
            left_in[states.get(event["request_id"], "received")] += 1
        states[event["request_id"]] = event["state"]
    return left_in
