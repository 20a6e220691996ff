"""A decode worker that dies in the middle of streams costs their clients nothing but a pause."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cluster import Answer, Cluster, wait_until
from model_folders import prompt_ids
from oracle import LOGPROB_TOLERANCE

LEASE_S = 3.0
WAIT_S = 20.0
SAMPLED = {"temperature": 1.0, "seed": 7}

REQUESTS: list[Mapping[str, Any]] = [
    {"prompt": prompt_ids(100, seed=1), "max_tokens": 400, "logprobs": 2},
    {"prompt": prompt_ids(31, seed=2), "max_tokens": 400, **SAMPLED},
    {"prompt": prompt_ids(64, seed=3), "max_tokens": 300, "n": 3, "logprobs": 1, **SAMPLED},
    {
        "prompt": prompt_ids(5, seed=4),
        "max_tokens": 400,
        "ignore_eos": False,
        "min_tokens": 350,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.1,
        **SAMPLED,
    },
]


def test_a_killed_decode_worker_changes_no_token_of_any_stream(llama: Path, tmp_path: Path) -> None:
    options = {
        "kv_blocks": 1024,
        "decode": 2,
        "max_restarts": 0,
        "policy": "round_robin",
        "event_log": tmp_path / "events.jsonl",
    }
    with Cluster(model=llama, **options) as cluster, ThreadPoolExecutor(2 * len(REQUESTS)) as threads:
        undisturbed = [cluster.complete(**body) for body in REQUESTS]
        pids = cluster.pids()
        answers = [
            threads.submit(cluster.complete, **body, cache_salt=salt)
            for salt in ("first", "second")
            for body in REQUESTS
        ]
        wait_until(lambda: _running(cluster, "decode-0") >= 3, WAIT_S, cluster.workers)
        os.kill(pids["decode-0"], signal.SIGKILL)
        for answer, expected in zip(answers, undisturbed * 2, strict=True):
            _assert_same(answer.result(timeout=60), expected)
        assert any(event["transition"] == "resume" for event in cluster.events())
        wait_until(lambda: "decode-0" not in cluster.workers(), LEASE_S + 2.0, cluster.workers)
        cluster.wait_for_baseline()


def _running(cluster: Cluster, worker_id: str) -> int:
    return int(cluster.workers()[worker_id]["running"])


def _assert_same(answer: Answer, expected: Answer) -> None:
    for choice, other in zip(answer.choices, expected.choices, strict=True):
        assert choice["token_ids"] == other["token_ids"]
        assert choice["text"] == other["text"]
        assert choice["finish_reason"] == other["finish_reason"]
        if choice["logprobs"] is not None:
            told = choice["logprobs"]["token_logprobs"]
            assert told == pytest.approx(other["logprobs"]["token_logprobs"], abs=LOGPROB_TOLERANCE)
    assert answer.usage["completion_tokens"] == expected.usage["completion_tokens"]
