"""Workers change their roles under load, and no client notices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, wait_until
from load import Load
from model_folders import prompt_ids

SAMPLED = {"temperature": 1.0, "seed": 7}
BODIES: list[Mapping[str, Any]] = [
    {"prompt": prompt_ids(90, seed=1), "max_tokens": 600},  # there is always somebody to move
    {"prompt": prompt_ids(31, seed=2), "max_tokens": 200, **SAMPLED},
    {"prompt": prompt_ids(50, seed=3), "max_tokens": 60, "n": 2, **SAMPLED},
    {"prompt": prompt_ids(300, seed=4), "max_tokens": 20},
]
CLIENTS = 6
LEAVE_S = 20.0


def flip(cluster: Cluster, worker_id: str, role: str, drain_timeout_s: float = 20.0) -> dict[str, Any]:
    body = {"role": role, "drain_timeout_s": drain_timeout_s}
    answer = cluster.client.post(f"/workers/{worker_id}/role", json=body, timeout=60.0)
    assert answer.status_code == httpx.codes.OK, answer.text
    change: dict[str, Any] = answer.json()
    assert cluster.workers()[worker_id]["role"] == role
    return change


def leave(cluster: Cluster, worker_id: str) -> None:
    """Scales down by a worker, as an orchestrator does it."""
    os.kill(cluster.pids()[worker_id], signal.SIGTERM)
    wait_until(lambda: worker_id not in cluster.workers(), LEAVE_S, cluster.workers)


def test_workers_change_roles_and_leave_under_load_and_no_request_notices(
    llama: Path, tmp_path: Path
) -> None:
    options = {"prefill": 2, "decode": 2, "kv_blocks": 1024, "event_log": tmp_path / "events.jsonl"}
    with Cluster(model=llama, **options) as cluster:
        pids = cluster.pids()
        with Load(cluster, BODIES, CLIENTS) as load:
            for worker_id, role in (
                ("prefill-1", "decode"),
                ("decode-0", "prefill"),
                ("decode-1", "prefill"),
                ("decode-0", "decode"),
            ):
                flip(cluster, worker_id, role)
                load.check()
            assert cluster.pids() == pids
            leave(cluster, "prefill-1")
        cluster.wait_for_baseline()
        transitions = [event["transition"] for event in cluster.events()]
        assert "migrate" in transitions, Counter(transitions)
        assert "fail" not in transitions
        refused = cluster.client.post("/workers/decode-0/role", json={"role": "prefill"})
        assert refused.status_code == httpx.codes.BAD_REQUEST
        assert "last decode worker" in refused.json()["error"]["message"]


@pytest.mark.soak
def test_a_hundred_role_changes_of_the_demo_model_under_load() -> None:
    """In float32: in its own bfloat16 a near tie between two tokens may fall otherwise in another batch."""
    changes: list[dict[str, Any]] = []
    with Cluster(prefill=2, decode=2, kv_blocks=1024, dtype="float32") as cluster:
        with Load(cluster, BODIES, CLIENTS) as load:
            for number in range(50):
                worker_id = ("decode-0", "decode-1", "prefill-0", "prefill-1")[number % 4]
                role = cluster.workers()[worker_id]["role"]
                for changed in ({"prefill": "decode", "decode": "prefill"}[role], role):
                    changes.append(flip(cluster, worker_id, changed))
                    load.check()
        cluster.wait_for_baseline()
    print(
        f"{load.answers} answers", *(spread(changes, part) for part in ("drained_s", "switched_s")), sep="\n"
    )


def spread(changes: list[dict[str, Any]], part: str) -> str:
    """Of that part's seconds."""
    seconds = sorted(change[part] for change in changes)
    cuts = {"least": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    figures = (f"{name} {seconds[round(share * (len(seconds) - 1))]:.3f}" for name, share in cuts.items())
    return f"{part} of {len(seconds)}: {', '.join(figures)}"


@pytest.mark.soak
def test_a_hundred_departures_under_load(llama: Path) -> None:
    answers = 0
    for _ in range(10):
        with Cluster(model=llama, prefill=1, decode=11, kv_blocks=512) as cluster:
            with Load(cluster, BODIES, CLIENTS) as load:
                for number in range(10):
                    leave(cluster, f"decode-{number}")
                    load.check()
            cluster.wait_for_baseline()
            answers += load.answers
    print(f"{answers} answers")


def test_baton_flip_changes_a_role_from_the_command_line_and_says_why_not(llama: Path) -> None:
    with Cluster(model=llama, prefill=1, decode=1, kv_blocks=256, api_key="k") as cluster:
        cluster.client.headers["authorization"] = "Bearer k"
        for arguments, status, said in (
            (["prefill-0", "decode", "--api-key=k"], 0, "prefill-0 is a decode worker"),
            (["decode-0", "prefill", "--api-key=k"], 0, "decode-0 is a prefill worker"),
            (["prefill-0", "prefill", "--api-key=k"], 2, "the last decode worker"),
            (["nobody", "decode", "--api-key=k"], 2, "not in the fleet"),
            (["decode-0", "decode"], 2, "key is required"),
        ):
            command = [sys.executable, "-P", "-m", "baton.cli", "flip", *arguments, f"--url={cluster.url}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == status, done.stderr
            assert said in done.stdout + done.stderr
