"""Traffic that turns from prompts to outputs and back moves the workers of a live cluster there and back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from load import Load
from model_folders import prompt_ids

COOLDOWN_S = 10.0
FLIPS_PER_HOUR = 8
CLIENTS = 6
TURN_S = 50.0
PROMPTS: list[dict[str, Any]] = [{"prompt": prompt_ids(1500, seed=n), "max_tokens": 1} for n in range(2)]
OUTPUTS: list[dict[str, Any]] = [{"prompt": prompt_ids(20, seed=n), "max_tokens": 300} for n in range(2)]
PHASES = ((PROMPTS, "prefill"), (OUTPUTS, "decode"), (PROMPTS, "prefill"))


def flips(cluster: Cluster) -> list[tuple[float, str, str]]:
    """When a worker was told to change, which, and to what."""
    return [
        (event["time"], action["worker"], action["role"])
        for event in cluster.events()
        if "planner" in event
        for action in event["planner"]["actions"]
    ]


def follow(cluster: Cluster, bodies: list[dict[str, Any]], role: str) -> None:
    """Keeps clients at work until all workers but one have `role`. An answer that is wrong or fails raises."""
    with Load(cluster, bodies, CLIENTS) as load:

        def has_followed() -> bool:
            load.check()
            return [view["role"] for view in cluster.workers().values()].count(role) == 3

        wait_until(
            has_followed, TURN_S, lambda: [event for event in cluster.events() if "planner" in event][-3:]
        )
        answers = load.answers
        wait_until(lambda: load.answers > answers + CLIENTS, TURN_S, lambda: load.answers)


@pytest.mark.soak
def test_workers_follow_the_traffic_and_back_and_no_request_notices(llama: Path, tmp_path: Path) -> None:
    """An objective for tokens that no batch keeps makes of every second sequence on a worker one too many."""
    options = {
        "prefill": 2,
        "decode": 2,
        "kv_blocks": 1024,
        "disaggregation": "always",
        "planner": "on",
        "planner_tpot": 0.0001,
        "planner_cooldown": COOLDOWN_S,
        "planner_flips_per_hour": FLIPS_PER_HOUR,
        "event_log": tmp_path / "events.jsonl",
    }
    told: list[tuple[float, str, str]] = []
    with Cluster(model=llama, **options) as cluster:
        for bodies, role in PHASES:
            follow(cluster, bodies, role)
            assert {to for _, _, to in flips(cluster)[len(told) :]} == {role}
            told = flips(cluster)
        cluster.wait_for_baseline()
        assert not any(event.get("transition") in ("fail", "refuse") for event in cluster.events())
    assert len(told) <= FLIPS_PER_HOUR
    turns = [(before, after) for before, after in pairwise(told) if before[2] != after[2]]
    assert all(after[0] - before[0] >= COOLDOWN_S for before, after in turns)
