"""Workers change their roles under load, and no client notices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from cluster import Cluster
from load import Load
from model_folders import prompt_ids

SAMPLED = {"temperature": 1.0, "seed": 7}
BODIES: list[Mapping[str, Any]] = [
    {"prompt": prompt_ids(90, seed=1), "max_tokens": 150},
    {"prompt": prompt_ids(31, seed=2), "max_tokens": 200, **SAMPLED},
    {"prompt": prompt_ids(50, seed=3), "max_tokens": 60, "n": 2, **SAMPLED},
    {"prompt": prompt_ids(300, seed=4), "max_tokens": 20},
]
CLIENTS = 6


def flip(cluster: Cluster, worker_id: str, role: str, drain_timeout_s: float = 20.0) -> dict[str, Any]:
    body = {"role": role, "drain_timeout_s": drain_timeout_s}
    answer = cluster.client.post(f"/workers/{worker_id}/role", json=body, timeout=60.0)
    assert answer.status_code == httpx.codes.OK, answer.text
    change: dict[str, Any] = answer.json()
    assert cluster.workers()[worker_id]["role"] == role
    return change


def test_workers_change_roles_under_load_and_no_request_notices(llama: Path, tmp_path: Path) -> None:
    options = {"prefill": 2, "decode": 2, "kv_blocks": 1024, "event_log": tmp_path / "events.jsonl"}
    with Cluster(model=llama, **options) as cluster:
        pids = cluster.pids()
        with Load(cluster, BODIES, CLIENTS) as load:
            for worker_id, role in (
                ("prefill-1", "decode"),
                ("decode-0", "prefill"),
                ("decode-1", "prefill"),
                ("decode-0", "decode"),
                ("prefill-1", "prefill"),
            ):
                flip(cluster, worker_id, role)
                load.check()
        cluster.wait_for_baseline()
        assert cluster.pids() == pids
        refused = cluster.client.post("/workers/decode-0/role", json={"role": "prefill"})
        assert refused.status_code == httpx.codes.BAD_REQUEST
        assert "last decode worker" in refused.json()["error"]["message"]
