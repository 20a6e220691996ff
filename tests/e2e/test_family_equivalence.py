"""Every family, through HTTP, router, prefill, hand-off and decode, gives the tokens that transformers gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import model_folders
import pytest
from cluster import Cluster
from oracle import Reference, assert_equal, reference

POOL_TOKENS = 12_288
CONCURRENT = 16


@dataclass(frozen=True, slots=True)
class Setting:
    """chunk_tokens and block_size that do not divide each other put chunk ends inside of blocks."""

    transport: str
    block_size: int
    chunk_tokens: int


SETTINGS = (
    Setting("shm", block_size=16, chunk_tokens=512),
    Setting("tcp", block_size=16, chunk_tokens=100),
    Setting("shm", block_size=8, chunk_tokens=33),
    Setting("tcp", block_size=32, chunk_tokens=512),
)
CASES = dict(zip(model_folders.VARIANTS, cycle(SETTINGS), strict=False))
"""The families take turns; `test_settings_equivalence` has the combinations."""

SHORT = {"llama-llama3", "mistral-window", "qwen2-window", "qwen3"}
"""One of each architecture, and each setting once; a worker computes the others in `tests/engine`."""

salts = count()


@dataclass(frozen=True, slots=True)
class Family:
    folder: Path
    block: int
    cluster: Cluster

    def references(self) -> list[Reference]:
        lengths = (1, self.block - 1, self.block, self.block + 1, 1000)
        return [reference(self.folder, length) for length in lengths]


@pytest.fixture(
    scope="module",
    params=[name if name in SHORT else pytest.param(name, marks=pytest.mark.soak) for name in CASES],
)
def family(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Iterator[Family]:
    folder, setting = model_folder(request.param), CASES[request.param]
    with Cluster(
        model=folder,
        dtype="float32",
        kv_blocks=POOL_TOKENS // setting.block_size,
        block_size=setting.block_size,
        chunk_tokens=setting.chunk_tokens,
        transport=setting.transport,
        disaggregation="always",
    ) as cluster:
        yield Family(folder, setting.block_size, cluster)


@pytest.fixture
def cluster(family: Family) -> Cluster:
    return family.cluster


def test_tokens_and_logprobs_equal_those_of_transformers(family: Family) -> None:
    for expected in family.references():
        answer = family.cluster.complete(expected.prompt, logprobs=5, cache_salt=f"cold {next(salts)}")
        assert_equal(answer, expected)
        assert (answer.prefill, answer.decode) == ("prefill-0", "decode-0")
        assert answer.cached_tokens == 0


def test_tokens_stay_the_same_with_prefix_hits(family: Family) -> None:
    salt = f"warm {next(salts)}"
    for expected in family.references():
        for expected_blocks in (0, (len(expected.prompt) - 1) // family.block):
            answer = family.cluster.complete(expected.prompt, logprobs=5, cache_salt=salt)
            assert_equal(answer, expected)
            assert answer.cached_tokens == expected_blocks * family.block


def test_a_longer_prompt_goes_on_from_a_cached_prefix(family: Family) -> None:
    shorter = reference(family.folder, 3 * family.block + 5)
    longer = reference(family.folder, 5 * family.block + 1, begin=shorter.prompt)
    salt = f"longer {next(salts)}"
    assert_equal(family.cluster.complete(shorter.prompt, cache_salt=salt), shorter)
    answer = family.cluster.complete(longer.prompt, cache_salt=salt)
    assert_equal(answer, longer)
    assert answer.cached_tokens == 3 * family.block


def test_a_conversation_goes_on_from_its_own_answer(family: Family) -> None:
    """The second turn meets KV that decode computed."""
    first = reference(family.folder, family.block + 3)
    assert_equal(family.cluster.complete(first.prompt, session_id="conversation"), first)
    begin = (*first.prompt, *first.token_ids)
    second = reference(family.folder, len(begin) + 7, begin)
    answer = family.cluster.complete(second.prompt, session_id="conversation")
    assert_equal(answer, second)
    assert answer.cached_tokens >= family.block


def test_16_concurrent_requests_get_what_each_gets_alone(family: Family) -> None:
    references = [
        expected for expected, _ in zip(cycle(family.references()), range(CONCURRENT), strict=False)
    ]
    answers = family.cluster.complete_all(
        {"prompt": expected.prompt, "logprobs": 5, "cache_salt": f"concurrent {next(salts)}"}
        for expected in references
    )
    for answer, expected in zip(answers, references, strict=True):
        assert_equal(answer, expected)
