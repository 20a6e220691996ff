"""One family under every combination of transport and chunk size, with a pool too small for its load: no
setting and no neighbour in the batch changes a token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from cluster import BASELINE_S, Cluster, wait_until
from model_folders import prompt_ids
from oracle import TOKENS, assert_equal, assert_equal_choice, reference

BLOCK = 16
KV_BLOCKS = 72  # the longest request takes 67
CONCURRENT = 16

salts = count()


@dataclass(frozen=True, slots=True)
class Setting:
    transport: str
    chunk_tokens: int

    def __str__(self) -> str:
        return f"{self.transport}-{self.chunk_tokens}"


SETTINGS = [Setting("shm", 37), Setting("tcp", 512)]
LONG = [Setting("shm", 512), Setting("tcp", 37)]


@pytest.fixture(
    scope="module",
    params=[*SETTINGS, *(pytest.param(setting, marks=pytest.mark.soak) for setting in LONG)],
    ids=str,
)
def cluster(request: pytest.FixtureRequest, llama: Path) -> Iterator[Cluster]:
    setting: Setting = request.param
    with Cluster(
        model=llama,
        kv_blocks=KV_BLOCKS,
        block_size=BLOCK,
        chunk_tokens=setting.chunk_tokens,
        transport=setting.transport,
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("prompt_tokens", [1, BLOCK - 1, BLOCK, BLOCK + 1, 1000])
def test_tokens_equal_those_of_transformers(cluster: Cluster, llama: Path, prompt_tokens: int) -> None:
    expected = reference(llama, prompt_tokens)
    answer = cluster.complete(expected.prompt, logprobs=5, cache_salt=f"{next(salts)}")
    assert_equal(answer, expected)
    assert answer.prefill == "prefill-0"


def test_a_local_prefill_of_what_is_not_cached_changes_nothing(cluster: Cluster, llama: Path) -> None:
    expected = reference(llama, 100)
    answers = [cluster.complete(expected.prompt, logprobs=5, cache_salt="local") for _ in range(2)]
    for answer in answers:
        assert_equal(answer, expected)
    assert [answer.prefill for answer in answers] == ["prefill-0", "local"]
    assert answers[1].cached_tokens == 6 * BLOCK


def test_preemption_changes_nothing(cluster: Cluster, llama: Path) -> None:
    """The 16 choices of each prompt grow in step to 5 blocks of their own, where there are 72 in all."""
    before = cluster.worker("decode")["preemptions"]
    references = [reference(llama, 2 * BLOCK + tokens) for tokens in (5, 9, 15)]
    prompts = [expected.prompt for expected in references]
    answer = cluster.complete(prompts, n=CONCURRENT, logprobs=5, cache_salt=f"{next(salts)}")
    assert len(answer.choices) == len(prompts) * CONCURRENT
    for choice in answer.choices:
        assert_equal_choice(choice, references[choice["index"] // CONCURRENT])

    def was_preempted() -> bool:
        return bool(cluster.worker("decode")["preemptions"] > before)

    wait_until(was_preempted, BASELINE_S, cluster.workers)


def test_16_requests_that_do_not_fit_together_get_what_each_gets_alone(cluster: Cluster, llama: Path) -> None:
    references = [reference(llama, 2 * BLOCK + i) for i in range(CONCURRENT)]
    answers = cluster.complete_all(
        {"prompt": expected.prompt, "logprobs": 5, "cache_salt": f"{next(salts)}"} for expected in references
    )
    for answer, expected in zip(answers, references, strict=True):
        assert_equal(answer, expected)


def test_a_long_prompt_between_short_ones_changes_nothing(cluster: Cluster, llama: Path) -> None:
    references = [reference(llama, tokens) for tokens in (40, 300, 1000, 33, 5, 600, 77, 120)]
    answers = cluster.complete_all(
        {"prompt": expected.prompt, "cache_salt": f"{next(salts)}"} for expected in references
    )
    for answer, expected in zip(answers, references, strict=True):
        assert_equal(answer, expected)


def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_batch_of_16(cluster: Cluster) -> None:
    """Preempted or not: the random numbers hang on seed and index alone."""
    prompt = prompt_ids(2 * BLOCK + 5, seed=1)
    requests = [
        {"prompt": prompt, "temperature": 1.0, "top_p": 0.95, "max_tokens": TOKENS, "seed": seed}
        for seed in range(CONCURRENT)
    ]
    alone = [cluster.complete(**request).token_ids for request in requests]  # type: ignore[arg-type]
    batch = [answer.token_ids for answer in cluster.complete_all(requests)]
    assert batch == alone
    assert len({tuple(token_ids) for token_ids in alone}) == CONCURRENT


def test_without_a_seed_two_answers_differ(cluster: Cluster) -> None:
    prompt = prompt_ids(20)
    first, second = (cluster.complete(prompt, temperature=1.0).token_ids for _ in range(2))
    assert first != second
