"""Who is told to go finishes what it has, says so, and takes nothing new."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from cluster import Cluster, wait_until
from model_folders import prompt_ids
from process_tree import descendants

WAIT_S = 10.0
MAX_TOKENS = 400


def test_a_draining_router_finishes_its_requests_and_turns_new_ones_away(llama: Path) -> None:
    """The decode worker is stopped meanwhile, so that the request cannot end before it has been looked at; what it
    has still to do then is done well within the drain's time, however busy the machine."""
    with Cluster(model=llama, kv_blocks=256) as cluster, ThreadPoolExecutor(1) as threads:
        decode_pid, is_stopped = cluster.pids()["decode-0"], threading.Event()

        def ask() -> list[int]:
            token_ids: list[int] = []
            for event in cluster.stream(prompt_ids(20), max_tokens=MAX_TOKENS):
                token_ids += event["choices"][0]["token_ids"]
                if not is_stopped.is_set():
                    os.kill(decode_pid, signal.SIGSTOP)
                    is_stopped.set()
            return token_ids

        answer = threads.submit(ask)
        assert is_stopped.wait(WAIT_S)
        [router] = [
            p
            for p in descendants(cluster.process.pid)
            if f"--port={httpx.URL(cluster.url).port}" in p.command
        ]
        os.kill(router.pid, signal.SIGTERM)
        wait_until(lambda: cluster.client.get("/ready").status_code == 503, WAIT_S, lambda: cluster.stderr)
        assert cluster.client.get("/live").status_code == 200
        refused = cluster.post(prompt_ids(5))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
        assert "draining" in refused.json()["error"]["message"]
        os.kill(decode_pid, signal.SIGCONT)
        assert len(answer.result(timeout=60)) == MAX_TOKENS
        assert cluster.process.wait(WAIT_S) == 1, "without a router the cluster is of no use"
        assert "router (process" in cluster.stderr


def test_a_worker_that_has_notice_hands_in_its_work_and_leaves_for_good(llama: Path, tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    options = {"kv_blocks": 256, "decode": 2, "spot_notice": f"file:{notice}"}
    with Cluster(model=llama, prefill=0, **options) as cluster, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(cluster.complete, prompt_ids(20), max_tokens=500)
        notice.touch()
        assert len(answer.result(timeout=60).token_ids) == 500
        assert cluster.process.wait(2 * WAIT_S) == 1, "every worker had the notice"
        assert "decode-1 (process" in cluster.stderr
        assert "ended with status 0" in cluster.stderr
        assert "starts again" not in cluster.stderr
