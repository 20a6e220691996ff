"""A real cluster whose router knows what each worker caches from the worker itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import Cluster, wait_until
from model_folders import prompt_ids

WAIT_S = 20.0


def worker(cluster: Cluster, worker_id: str) -> Mapping[str, Any]:
    workers: Mapping[str, Mapping[str, Any]] = cluster.workers()
    return workers.get(worker_id, {})


def knows_exactly(cluster: Cluster, worker_id: str) -> bool:
    return worker(cluster, worker_id).get("prefix_knowledge") == "exact"


def cached_blocks(cluster: Cluster) -> int:
    """By the workers' own count."""
    return sum(each["kv_blocks"]["cached"] for each in cluster.workers().values())


def test_the_router_credits_no_block_that_was_evicted(llama: Path) -> None:
    with Cluster(model=llama, kv_blocks=64, disaggregation="always", local_prefill_tokens=0) as cluster:
        wait_until(lambda: knows_exactly(cluster, "prefill-0"), WAIT_S, cluster.workers)
        wait_until(lambda: knows_exactly(cluster, "decode-0"), WAIT_S, cluster.workers)
        first = prompt_ids(320, seed=1)
        cluster.complete(prompt=first, max_tokens=2)
        assert cluster.complete(prompt=first, max_tokens=2).cached_tokens > 0
        for seed in range(2, 8):
            cluster.complete(prompt=prompt_ids(320, seed=seed), max_tokens=2)
        cluster.wait_for_baseline()
        wait_until(
            lambda: cluster.metric("baton_kv_index_entries") == cached_blocks(cluster),
            WAIT_S,
            cluster.workers,
        )
        assert cluster.complete(prompt=first, max_tokens=2).cached_tokens == 0
        assert cluster.metric("baton_kv_index_rejections_total") == 0


def test_a_killed_worker_leaves_no_credit_behind(llama: Path) -> None:
    options = {"prefill": 2, "policy": "prefix", "disaggregation": "always", "local_prefill_tokens": 0}
    with Cluster(model=llama, kv_blocks=256, **options) as cluster:
        prompt = prompt_ids(320, seed=1)
        served = cluster.complete(prompt=prompt, max_tokens=2).prefill
        assert cluster.complete(prompt=prompt, max_tokens=2).prefill == served, "where it is cached"
        entries = cluster.metric("baton_kv_index_entries")
        os.kill(cluster.pids()[served], signal.SIGKILL)
        other = cluster.complete(prompt=prompt, max_tokens=2)
        assert other.prefill != served
        wait_until(lambda: cluster.metric("baton_kv_index_entries") <= entries, WAIT_S, cluster.workers)
