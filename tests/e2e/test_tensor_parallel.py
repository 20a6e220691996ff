"""Workers of unequal tensor parallelism: the tokens of transformers, the bytes that were due, one fate for all."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster, wait_until
from model_folders import prompt_ids
from oracle import assert_equal, reference
from process_tree import Process, descendants

from baton.engine.model_config import ModelConfig

BLOCK = 16
RANK_COMMAND = "baton.worker.rank"
REPORT_S = 2.0


@dataclass(frozen=True, slots=True)
class Setting:
    """A model by its number of KV heads, and the ranks of each worker."""

    variant: str
    prefill_tp: int
    decode_tp: int
    transport: str = "auto"

    def __str__(self) -> str:
        return f"{self.variant}-{self.prefill_tp}-to-{self.decode_tp}-{self.transport}"


SETTINGS = [
    Setting("llama", 2, 1),
    Setting("llama-four-kv-heads", 1, 2, "tcp"),
    Setting("llama-mqa-biased", 2, 2),
]
LONG = [Setting("llama-four-kv-heads", 4, 1), Setting("llama-four-kv-heads", 1, 4)]


@pytest.fixture(
    scope="module",
    params=[*SETTINGS, *(pytest.param(setting, marks=pytest.mark.soak) for setting in LONG)],
    ids=str,
)
def setting(request: pytest.FixtureRequest) -> Setting:
    setting: Setting = request.param
    return setting


@pytest.fixture(scope="module")
def folder(setting: Setting, model_folder: Callable[[str], Path]) -> Path:
    return model_folder(setting.variant)


@pytest.fixture(scope="module")
def cluster(setting: Setting, folder: Path) -> Iterator[Cluster]:
    with Cluster(
        model=folder,
        kv_blocks=128,
        chunk_tokens=37,
        disaggregation="always",
        prefill_tp=setting.prefill_tp,
        decode_tp=setting.decode_tp,
        transport=setting.transport,
    ) as cluster:
        yield cluster


@pytest.mark.parametrize("prompt_tokens", [1, 100])
def test_tokens_equal_those_of_transformers(cluster: Cluster, folder: Path, prompt_tokens: int) -> None:
    expected = reference(folder, prompt_tokens)
    answer = cluster.complete(expected.prompt, logprobs=5)
    assert_equal(answer, expected)
    assert answer.prefill == "prefill-0"


def test_several_choices_share_a_prompt_on_every_rank(cluster: Cluster, folder: Path) -> None:
    expected = reference(folder, 100)
    answer = cluster.complete(expected.prompt, n=3)
    assert [choice["token_ids"] for choice in answer.choices] == [expected.token_ids] * 3


def test_requests_at_once_change_nothing(cluster: Cluster, folder: Path) -> None:
    references = [reference(folder, tokens) for tokens in (1, 100)]
    answers = cluster.complete_all(
        {"prompt": each.prompt, "cache_salt": f"at once {i}"} for i, each in enumerate(references)
    )
    for answer, expected in zip(answers, references, strict=True):
        assert_equal(answer, expected)


def test_every_decode_rank_gets_its_share_once(cluster: Cluster, folder: Path, setting: Setting) -> None:
    config = ModelConfig.from_folder(folder)
    held_heads = max(config.num_kv_heads, setting.decode_tp)
    block_bytes = config.kv_block_bytes(BLOCK) // config.num_kv_heads * held_heads

    def received() -> int:
        return int(cluster.worker("decode")["kv_bytes_received"])

    cluster.wait_for_baseline(steady_s=0.6)
    expected = received() + 4 * block_bytes
    cluster.complete(prompt_ids(4 * BLOCK - 1), max_tokens=2, cache_salt="share")
    wait_until(lambda: received() == expected, REPORT_S, received)


def ranks_of(worker_pid: int) -> list[Process]:
    return [process for process in descendants(worker_pid) if RANK_COMMAND in process.command]


def test_worker_and_rank_end_together_whichever_dies_and_the_others_serve_on(llama: Path) -> None:
    with Cluster(model=llama, kv_blocks=128, prefill=2, prefill_tp=2, max_restarts=0) as cluster:
        pids = cluster.pids()
        [orphan] = ranks_of(pids["prefill-1"])
        os.kill(pids["prefill-1"], signal.SIGKILL)
        wait_until(lambda: not orphan.is_alive, 10.0, lambda: orphan)
        wait_until(lambda: "prefill-1" not in cluster.workers(), 10.0, cluster.workers)
        [rank] = ranks_of(pids["prefill-0"])
        os.kill(rank.pid, signal.SIGKILL)
        wait_until(lambda: "prefill-0" not in cluster.workers(), 10.0, cluster.workers)
        expected = reference(llama, 100)
        answer = cluster.complete(expected.prompt)
        assert_equal(answer, expected)
        assert answer.prefill == "local"
        assert f"rank 1 of this worker (process {rank.pid}) was killed by SIGKILL" in cluster.stderr
