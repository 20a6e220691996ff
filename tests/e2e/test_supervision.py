"""`baton up` starts dead processes again, in their old places, and gives up what cannot stay alive."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from cluster import Cluster, wait_until
from oracle import assert_equal, reference
from process_tree import descendants

RESTART_S = 30.0
WAIT_S = 10.0


def router_process(cluster: Cluster, number: int = 0) -> int:
    """The process that serves the `number`th address."""
    flag = f" --port={httpx.URL(cluster.urls[number]).port} "
    [router] = [p for p in descendants(cluster.process.pid) if flag in p.command]
    return router.pid


def has_come_back(cluster: Cluster, before: dict[str, int], *names: str) -> bool:
    """All workers are there, those of `names` as new processes and the others as they were."""
    try:
        now = cluster.pids()
    except httpx.TransportError:
        return False
    return set(now) == set(before) and all((now[name] != before[name]) == (name in names) for name in now)


def test_dead_processes_come_back_under_their_names_and_on_their_ports(llama: Path) -> None:
    expected = reference(llama, 100)
    with Cluster(model=llama, kv_blocks=256) as cluster:
        before, router = cluster.pids(), router_process(cluster)
        for pid in (router, before["decode-0"]):
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: has_come_back(cluster, before, "decode-0"), RESTART_S, lambda: (before, cluster.stderr)
        )
        assert router_process(cluster) != router
        wait_until(lambda: cluster.client.get("/ready").is_success, RESTART_S, lambda: cluster.stderr)
        answer = cluster.complete(expected.prompt)
        assert_equal(answer, expected)
        assert (answer.prefill, answer.decode) == ("prefill-0", "decode-0")
        assert (
            f"decode-0 (process {before['decode-0']}) was killed by SIGKILL; it starts again"
            in cluster.stderr
        )
        cluster.processes = descendants(cluster.process.pid)


def test_up_ends_when_the_last_that_could_serve_has_used_up_its_restarts(llama: Path) -> None:
    with Cluster(model=llama, kv_blocks=64, prefill=0, max_restarts=0) as cluster:
        os.kill(cluster.pids()["decode-0"], signal.SIGKILL)
        assert cluster.process.wait(RESTART_S) == 1
        assert "it is given up, after 1 ends within 300 s" in cluster.stderr
        assert "nothing is left that could serve" in cluster.stderr
        cluster.assert_nothing_is_left()


def test_every_router_serves_the_whole_fleet_and_outlives_the_one_with_the_registry(llama: Path) -> None:
    expected = reference(llama, 100)
    with Cluster(model=llama, kv_blocks=256, routers=2) as cluster:
        before, router = cluster.pids(), router_process(cluster, number=0)
        with httpx.Client(base_url=cluster.urls[1], timeout=60.0, trust_env=False) as second:
            cluster.client, first = second, cluster.client
            assert cluster.pids() == before
            os.kill(router, signal.SIGKILL)
            assert_equal(cluster.complete(expected.prompt), expected)
            cluster.client = first
        wait_until(lambda: has_come_back(cluster, before), RESTART_S, lambda: (before, cluster.stderr))
        assert_equal(cluster.complete(expected.prompt, cache_salt="again"), expected)
        cluster.processes = descendants(cluster.process.pid)


def test_a_worker_whose_engine_hangs_ends_itself_and_comes_back(llama: Path) -> None:
    """A stopped rank is what its worker waits for in the middle of a step."""
    expected = reference(llama, 100)
    with Cluster(model=llama, kv_blocks=128, prefill=0, decode_tp=2, step_timeout=4) as cluster:
        before = cluster.pids()
        [rank] = [p for p in descendants(before["decode-0"]) if "baton.worker.rank " in p.command]
        os.kill(rank.pid, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            hung = threads.submit(cluster.post, expected.prompt)
            wait_until(lambda: cluster.worker("decode")["state"] == "stalled", WAIT_S, cluster.workers)
            wait_until(lambda: has_come_back(cluster, before, "decode-0"), RESTART_S, lambda: cluster.stderr)
            hung.result()
        assert not rank.is_alive
        assert "the engine is in one step for" in cluster.stderr
        assert_equal(cluster.complete(expected.prompt), expected)
        cluster.processes = descendants(cluster.process.pid)
