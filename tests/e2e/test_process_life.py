"""Processes that are stopped or killed: nothing of a cluster outlives it, and no request ends with a lie."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cluster import BASELINE_S, Answer, Cluster, wait_until
from model_folders import prompt_ids
from oracle import assert_equal, reference

LEASE_S = 3.0
LONG_PROMPT_TOKENS = 1000
REQUESTS = 8
WAIT_S = 10.0


def test_up_without_a_model_serves_the_demo_model_and_killing_it_ends_every_process() -> None:
    with Cluster() as cluster:
        body = {"messages": [{"role": "user", "content": "Who may copy this?"}], "max_tokens": 24}
        answer = cluster.client.post("/v1/chat/completions", json=body).raise_for_status().json()
        assert answer["choices"][0]["message"]["content"]
        assert len(cluster.processes) >= 3
        cluster.process.kill()
        cluster.process.wait()
        cluster.assert_nothing_is_left()


def test_ctrl_c_in_the_middle_of_requests_leaves_nothing(llama: Path) -> None:
    with (
        Cluster(model=llama, kv_blocks=4096, chunk_tokens=32) as cluster,
        ThreadPoolExecutor(REQUESTS + 1) as threads,
    ):
        prompts = [prompt_ids(LONG_PROMPT_TOKENS, seed=seed) for seed in range(REQUESTS)]
        endless = threads.submit(cluster.post, prompt_ids(5), max_tokens=2000, n=100)
        answers = [threads.submit(cluster.post, prompt, max_tokens=10) for prompt in prompts]
        _wait_until_busy(cluster)
        cluster.stop()
        for answer in answers:
            _assert_truthful(answer, output_tokens=10)
        response = endless.result(timeout=60)
        assert response.is_server_error
        assert response.json()["error"]["code"] in ("unavailable", "worker_failed")
        assert "Traceback" not in cluster.stderr


@pytest.mark.parametrize("delay_s", [0.0, pytest.param(0.4, marks=pytest.mark.soak)])
def test_requests_of_a_killed_prefill_worker_end_well_and_later_ones_prefill_locally(
    llama: Path, delay_s: float
) -> None:
    expected = reference(llama, LONG_PROMPT_TOKENS)
    with (
        Cluster(model=llama, kv_blocks=1024, chunk_tokens=32, max_restarts=0) as cluster,
        ThreadPoolExecutor(REQUESTS) as threads,
    ):
        pids = cluster.pids()
        answers = [
            threads.submit(cluster.post, expected.prompt, cache_salt=f"{number}")
            for number in range(REQUESTS)
        ]
        _wait_until_busy(cluster)
        time.sleep(delay_s)
        os.kill(pids["prefill-0"], signal.SIGKILL)
        for answer in answers:
            response = answer.result(timeout=60)
            assert_equal(Answer(response.raise_for_status().json(), response.headers), expected)
        wait_until(lambda: "prefill-0" not in cluster.workers(), LEASE_S + 2.0, cluster.workers)
        cluster.wait_for_baseline()
        _assert_served_locally(cluster, llama)
        assert cluster.pids() == {"decode-0": pids["decode-0"]}


def test_a_prefill_worker_killed_while_decode_memory_is_awaited_is_replaced_at_once(
    llama: Path, tmp_path: Path
) -> None:
    expected = reference(llama, LONG_PROMPT_TOKENS)
    options = {"kv_blocks": 128, "max_restarts": 0, "event_log": tmp_path / "events.jsonl"}
    with Cluster(model=llama, **options) as cluster, ThreadPoolExecutor(2) as threads:
        pids = cluster.pids()
        holder = threads.submit(cluster.post, prompt_ids(1100, seed=7), max_tokens=600)
        wait_until(lambda: len(_transitions(cluster)) == 4, WAIT_S, cluster.events)
        waiting = threads.submit(cluster.post, expected.prompt)
        wait_until(lambda: _transitions(cluster).count("schedule") == 2, WAIT_S, cluster.events)
        os.kill(pids["decode-0"], signal.SIGSTOP)  # so that no memory gets free meanwhile
        os.kill(pids["prefill-0"], signal.SIGKILL)
        wait_until(lambda: "retry" in _transitions(cluster), WAIT_S, cluster.events)
        os.kill(pids["decode-0"], signal.SIGCONT)
        _assert_truthful(holder, output_tokens=600)
        answer = waiting.result(timeout=60)
        assert_equal(Answer(answer.json(), answer.headers), expected)
        wait_until(lambda: "prefill-0" not in cluster.workers(), LEASE_S + 2.0, cluster.workers)


def _transitions(cluster: Cluster) -> list[str]:
    return [event["transition"] for event in cluster.events()]


def _assert_served_locally(cluster: Cluster, llama: Path) -> None:
    for tokens in (40, LONG_PROMPT_TOKENS):
        expected = reference(llama, tokens)
        answer = cluster.complete(expected.prompt, cache_salt="without prefill")
        assert_equal(answer, expected)
        assert (answer.prefill, answer.decode) == ("local", "decode-0")


def _wait_until_busy(cluster: Cluster) -> None:
    def is_busy() -> bool:
        return any(worker["running"] for worker in cluster.workers().values())

    wait_until(is_busy, BASELINE_S + 8.0, cluster.workers)


def _assert_truthful(answer: Future[httpx.Response], output_tokens: int) -> None:
    """Either all tokens or an error with a code; a server that is being stopped may also just hang up."""
    try:
        response = answer.result(timeout=60)
    except httpx.TransportError:
        return
    if response.status_code == httpx.codes.OK:
        whole = Answer(response.json(), response.headers)
        assert len(whole.token_ids) == output_tokens
        assert whole.finish_reason == "length"
    else:
        assert response.is_server_error
        assert response.json()["error"]["code"]
