"""`--disaggregation auto`, the default, on a live cluster: where a prompt is computed is decided for each request,
is told and counted with its reason, and changes no token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from cluster import Cluster
from model_folders import prompt_ids
from oracle import assert_equal, reference
from prometheus_client.parser import text_string_to_metric_families

BLOCK = 16
BURST = 12
ANY_TPOT = {"x-slo-tpot-ms": "60000"}
"""An objective that every stream keeps, whatever is computed beside it."""

salts = count()


@pytest.fixture(scope="module")
def cluster(llama: Path) -> Iterator[Cluster]:
    with Cluster(model=llama, kv_blocks=1024, decode=2, block_size=BLOCK) as cluster:
        yield cluster


def sites(cluster: Cluster) -> Counter[str]:
    """Decisions so far by reason, as /metrics counts them."""
    text = cluster.client.get("/metrics").raise_for_status().text
    samples = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "baton_prompt_sites_total"
    ]
    return Counter({sample.labels["site"]: int(sample.value) for sample in samples})


def test_wherever_a_burst_is_computed_its_tokens_are_those_of_transformers(
    cluster: Cluster, llama: Path
) -> None:
    """Which is better depends on the speeds that the workers have measured of themselves."""
    before = sites(cluster)
    expected = reference(llama, 300)
    requests = [
        {"prompt": expected.prompt, "cache_salt": f"burst {next(salts)}", "headers": ANY_TPOT}
        for _ in range(BURST)
    ]
    answers = cluster.complete_all(requests)
    for answer in answers:
        assert_equal(answer, expected)
    local = sum(answer.prefill == "local" for answer in answers)
    told = Counter({"local_predicted_better": local, "remote": BURST - local})
    assert sites(cluster) - before == told


def test_without_an_objective_a_prompt_that_is_not_cached_is_handed_off(
    cluster: Cluster, llama: Path
) -> None:
    before = sites(cluster)
    expected = reference(llama, 100)
    answers = cluster.complete_all(
        {"prompt": expected.prompt, "cache_salt": f"none {next(salts)}"} for _ in range(4)
    )
    for answer in answers:
        assert_equal(answer, expected)
    assert [answer.prefill for answer in answers] == ["prefill-0"] * 4
    assert sites(cluster) - before == {"remote": 4}


def test_the_next_turn_of_a_session_finds_its_kv_where_decode_left_it(cluster: Cluster, llama: Path) -> None:
    before = sites(cluster)
    first = reference(llama, 200)
    second = reference(llama, 200 + len(first.token_ids) + 5, (*first.prompt, *first.token_ids))
    for number in range(4):
        session = {"headers": {"X-Session-ID": f"turns {number}"}, "cache_salt": f"turns {number}"}
        told = cluster.complete(first.prompt, **session)
        assert_equal(told, first)
        cluster.wait_for_baseline()
        asked = cluster.complete(second.prompt, **session)
        assert_equal(asked, second)
        assert (told.prefill, asked.prefill) == ("prefill-0", "local")
        assert asked.decode == told.decode
        in_kv = len(first.prompt) + len(first.token_ids) - 1  # the last token has none
        assert asked.cached_tokens == in_kv // BLOCK * BLOCK
    assert sites(cluster) - before == {"remote": 4, "local_almost_cached": 4}


def test_two_sessions_that_ask_the_same_have_workers_of_their_own_choice(cluster: Cluster) -> None:
    """Sessions alone decide here: prompts are equal, nothing of them is cached, and both workers are idle."""
    chosen = {
        cluster.complete(
            prompt_ids(80), max_tokens=1, cache_salt=f"spread {n}", headers={"X-Session-ID": f"spread {n}"}
        ).decode
        for n in range(12)
    }
    assert chosen == {"decode-0", "decode-1"}
