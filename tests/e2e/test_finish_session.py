"""The end of a session in a real cluster: its blocks go first, those of others stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cluster import Cluster
from model_folders import prompt_ids

POOL_BLOCKS = 64
SYSTEM = prompt_ids(64, seed=1)
"""Four blocks that all begin with."""


@pytest.fixture(scope="module")
def cluster(llama: Path) -> Iterator[Cluster]:
    options = {"routers": 2, "disaggregation": "always", "local_prefill_tokens": 0}
    with Cluster(model=llama, kv_blocks=POOL_BLOCKS, **options) as cluster:
        yield cluster


def say(cluster: Cluster, seed: int, tokens: int = 256, **names: Any) -> int:
    """A prompt of its own after the common beginning; how many of its tokens were cached."""
    prompt = SYSTEM + prompt_ids(tokens, seed=seed)
    answer = cluster.complete(prompt=prompt, max_tokens=2, ignore_eos=True, **names)
    cluster.wait_for_baseline()
    return answer.cached_tokens


def finish(url: str, session_id: str) -> Mapping[str, Any]:
    answer = httpx.post(f"{url}/finish_session", json={"session_id": session_id}, trust_env=False)
    assert answer.status_code == httpx.codes.OK, answer.text
    finished: Mapping[str, Any] = answer.json()
    return finished


def test_a_finished_sessions_blocks_go_first_and_those_of_others_stay(cluster: Cluster) -> None:
    say(cluster, seed=10, session_id="ann")
    say(cluster, seed=20, session_id="bob")
    before = {worker_id: worker["kv_blocks"] for worker_id, worker in cluster.workers().items()}
    finished = finish(cluster.urls[1], "bob")
    assert finished["workers"] == {"prefill-0": 16, "decode-0": 16}, "the common beginning is ann's as well"
    assert finished["unconfirmed"] == []
    assert {w: worker["kv_blocks"] for w, worker in cluster.workers().items()} == before, (
        "nothing is lost yet"
    )
    say(cluster, seed=30, tokens=704)  # 16 blocks more than are free
    assert say(cluster, seed=10, session_id="ann") == 64 + 240, "all but the last, though they are older"
    assert say(cluster, seed=20, session_id="bob") == 64
    assert finish(cluster.urls[0], "bob")["blocks"] > 0, "a session that goes on may be finished again"
    assert finish(cluster.urls[0], "nobody")["blocks"] == 0


def test_the_openai_client_finishes_a_session(cluster: Cluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="any", max_retries=0) as client:
        [model] = client.models.list().data
        client.completions.create(
            model=model.id, prompt=prompt_ids(48, seed=40), max_tokens=2, extra_body={"session_id": "cleo"}
        )
        answer = client.post("/finish_session", body={"session_id": "cleo"}, cast_to=dict[str, Any])
    assert set(answer["workers"]) == {"prefill-0", "decode-0"}
    assert answer["blocks"] == 2 * 3
    assert cluster.metric("baton_sessions_finished_total") > 0
