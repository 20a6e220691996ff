"""The planner of a live cluster: real processes change roles at its word."""

from __future__ import annotations

import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster import Cluster, wait_until
from load import Load
from model_folders import prompt_ids
from process_tree import descendants
from rich.console import Console

from baton.cli.plan import plan_view
from baton.fleet import Role

WAIT_S = 30.0


def count(cluster: Cluster) -> dict[str, int]:
    return Counter(view["role"] for view in cluster.workers().values())


def plans(cluster: Cluster) -> list[dict[str, Any]]:
    return [event["planner"] for event in cluster.events() if "planner" in event]


def test_when_the_last_decode_worker_freezes_a_prefill_worker_takes_its_place(
    llama: Path, tmp_path: Path
) -> None:
    options = {"prefill": 2, "decode": 1, "kv_blocks": 256, "planner": "on", "rescue_after": 0}
    with Cluster(model=llama, event_log=tmp_path / "events.jsonl", **options) as cluster:
        wait_until(lambda: cluster.metric("baton_planner_leads") == 1.0, WAIT_S, cluster.workers)
        frozen = cluster.pids()["decode-0"]
        os.kill(frozen, signal.SIGSTOP)
        try:
            wait_until(lambda: count(cluster) == {"prefill": 1, "decode": 1}, WAIT_S, cluster.workers)
            answer = cluster.complete(prompt_ids(100), max_tokens=5)
            assert len(answer.token_ids) == 5
            assert answer.decode.startswith("prefill-")
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert cluster.metric('baton_planner_flips_total{role="decode"}') == 1.0
        shown = Console(record=True, width=100)
        shown.print(plan_view(str(cluster.client.base_url), ""))
        assert "prefill" in shown.export_text()
        assert "no decode worker is left" in [plan["reason"] for plan in plans(cluster)]


def test_without_a_planner_or_supervision_a_killed_decode_worker_costs_its_streams_a_pause(
    llama: Path,
) -> None:
    options = {"prefill": 2, "decode": 1, "kv_blocks": 512, "max_restarts": 0, "rescue_after": 0}
    bodies: list[dict[str, Any]] = [
        {"prompt": prompt_ids(100, seed=1), "max_tokens": 500},
        {"prompt": prompt_ids(31, seed=2), "max_tokens": 500, "temperature": 1.0, "seed": 7},
    ]
    with Cluster(model=llama, **options) as cluster, ThreadPoolExecutor(2 * len(bodies)) as threads:
        undisturbed = [cluster.complete(**body) for body in bodies]
        answers = [
            threads.submit(cluster.complete, **body, cache_salt=salt) for salt in "ab" for body in bodies
        ]
        wait_until(lambda: cluster.workers()["decode-0"]["running"] >= 2, WAIT_S, cluster.workers)
        os.kill(cluster.pids()["decode-0"], signal.SIGKILL)
        for answer, expected in zip(answers, undisturbed * 2, strict=True):
            assert answer.result(timeout=60).token_ids == expected.token_ids
        assert count(cluster) == {"prefill": 1, "decode": 1}
        assert cluster.complete(prompt_ids(100), max_tokens=5).decode.startswith("prefill-")
        cluster.wait_for_baseline()


def test_the_supervisor_starts_and_stops_workers_at_the_planner_s_word_and_no_request_notices(
    llama: Path, tmp_path: Path
) -> None:
    options = {
        "prefill": 2,
        "decode": 2,
        "kv_blocks": 512,
        "max_restarts": 0,
        "planner": "on",
        "planner_workers": "3-3",
        "scaler": "local",
        "event_log": tmp_path / "events.jsonl",
    }
    body = {"prompt": prompt_ids(60, seed=1), "max_tokens": 60}
    with Cluster(model=llama, **options) as cluster:
        with Load(cluster, [body], clients=2) as load:
            wait_until(lambda: len(cluster.workers()) == 3, WAIT_S, cluster.workers)
            wait_until(lambda: "ended with status 0" in cluster.stderr, WAIT_S, lambda: cluster.stderr)
            load.check()
            doubled = max(Role, key=lambda role: count(cluster)[role.value]).value
            victim = next(view for view in cluster.workers().values() if view["role"] == doubled)
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: started(cluster) and len(cluster.workers()) == 3, WAIT_S, cluster.workers)
            load.check()
        cluster.processes = descendants(cluster.process.pid)


def started(cluster: Cluster) -> bool:
    return "is started at the planner's word" in cluster.stderr
