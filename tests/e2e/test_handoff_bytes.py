"""The hand-off is real: the bytes that crossed are the blocks that decode did not have, no more and no fewer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from model_folders import prompt_ids
from oracle import assert_equal, reference

from baton.engine.model_config import ModelConfig

BLOCK = 16
REPORT_S = 0.35
"""A little more than workers take to report what they counted."""

salts = count()


@pytest.fixture(scope="module")
def block_bytes(llama: Path) -> int:
    return ModelConfig.from_folder(llama).kv_block_bytes(BLOCK)


@contextmanager
def crossing(cluster: Cluster, blocks: int, block_bytes: int) -> Iterator[None]:
    """Asserts that what happens inside moves exactly `blocks` blocks, by the count of both sides."""
    time.sleep(REPORT_S)
    counters = _counters(cluster)
    expected = {name: value + blocks * block_bytes for name, value in counters.items()}
    yield
    wait_until(lambda: _counters(cluster) == expected, 2.0, lambda: (counters, _counters(cluster), expected))


def _counters(cluster: Cluster) -> Mapping[str, float]:
    return {
        "sent by prefill": cluster.worker("prefill")["kv_bytes_sent"],
        "received by decode": cluster.worker("decode")["kv_bytes_received"],
        "seen by the router": cluster.metric("baton_handoff_bytes_total"),
    }


@pytest.mark.parametrize(
    ("prompt_tokens", "blocks"), [(1, 1), (BLOCK - 1, 1), (BLOCK, 1), (BLOCK + 1, 2), (1000, 63)]
)
def test_a_cold_prompt_crosses_whole(
    cluster: Cluster, block_bytes: int, prompt_tokens: int, blocks: int
) -> None:
    with crossing(cluster, blocks, block_bytes):
        cluster.complete(prompt_ids(prompt_tokens), max_tokens=4, cache_salt=f"cold {next(salts)}")


def test_of_a_prompt_with_a_shared_prefix_only_the_missing_blocks_cross(
    cluster: Cluster, block_bytes: int, llama: Path
) -> None:
    shorter = reference(llama, 20 * BLOCK)
    longer = reference(llama, 30 * BLOCK + 3, begin=shorter.prompt)
    salt = f"delta {next(salts)}"
    with crossing(cluster, 20, block_bytes):
        assert_equal(cluster.complete(shorter.prompt, cache_salt=salt), shorter)
    with crossing(cluster, 11, block_bytes):
        assert_equal(cluster.complete(longer.prompt, cache_salt=salt), longer)
    with crossing(cluster, 1, block_bytes):  # the last block is not full, so it is never shared
        assert_equal(cluster.complete(longer.prompt, cache_salt=salt), longer)


def test_nothing_crosses_for_a_prompt_that_decode_caches_whole(
    cluster: Cluster, block_bytes: int, llama: Path
) -> None:
    expected = reference(llama, 10 * BLOCK)
    salt = f"whole {next(salts)}"
    assert_equal(cluster.complete(expected.prompt, cache_salt=salt), expected)
    with crossing(cluster, 0, block_bytes):
        answer = cluster.complete(expected.prompt, cache_salt=salt)
    assert_equal(answer, expected)


def test_a_prefix_of_another_salt_is_not_reused(cluster: Cluster, block_bytes: int) -> None:
    prompt = prompt_ids(5 * BLOCK)
    for salt in ("tenant a", "tenant b"):
        with crossing(cluster, 5, block_bytes):
            assert cluster.complete(prompt, max_tokens=2, cache_salt=salt).cached_tokens == 0


def test_several_choices_share_one_hand_off(cluster: Cluster, block_bytes: int) -> None:
    prompt = prompt_ids(10 * BLOCK + 5)
    with crossing(cluster, 11, block_bytes):
        answer = cluster.complete(
            prompt, n=4, seed=1, temperature=1.0, max_tokens=20, cache_salt=f"n {next(salts)}"
        )
    assert answer.usage["prompt_tokens"] == len(prompt)
    assert answer.usage["completion_tokens"] == 4 * 20
    assert len({tuple(choice["token_ids"]) for choice in answer.choices}) == 4


def test_answers_name_the_workers_that_served_them(cluster: Cluster) -> None:
    workers = cluster.workers()
    answer = cluster.complete(prompt_ids(50), max_tokens=2)
    assert workers[answer.prefill]["role"] == "prefill"
    assert workers[answer.decode]["role"] == "decode"
