"""`baton up` starts dead processes again, in their old places, and gives up what cannot stay alive."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
from cluster import Cluster, wait_until
from oracle import assert_equal, reference
from process_tree import descendants

RESTART_S = 30.0


def router_process(cluster: Cluster) -> int:
    [router] = [p for p in descendants(cluster.process.pid) if " baton.cli router " in f" {p.command} "]
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
        assert f"decode-0 (process {before['decode-0']}) was killed by SIGKILL; it starts again" in cluster.stderr
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
        first, second = (url.strip() for url in cluster.url.split(","))
        workers = {url: httpx.get(f"{url}/workers", trust_env=False).json()["workers"] for url in (first, second)}
        assert [worker["pid"] for worker in workers[first]] == [worker["pid"] for worker in workers[second]]
