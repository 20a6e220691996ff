"""Traffic that turns from prompts to outputs and back moves the workers of a live cluster there and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, wait_until
from load import Load
from model_folders import prompt_ids

COOLDOWN_S = 10.0
FLIPS_PER_HOUR = 8
KV_BLOCKS = 512
"""So much memory that a decode worker bears about ten of the sequences below."""
TURN_S = 90.0


@dataclass(frozen=True, slots=True)
class Phase:
    """Clients that ask for the same few answers, and how many workers of the four are to have which role then."""

    bodies: Sequence[Mapping[str, Any]]
    clients: int
    role: str
    workers: int


PROMPTS = Phase([{"prompt": prompt_ids(1500, seed=n), "max_tokens": 1} for n in range(2)], 6, "prefill", 3)
OUTPUTS = Phase([{"prompt": prompt_ids(600, seed=n), "max_tokens": 200} for n in range(2)], 24, "decode", 2)


def thoughts(cluster: Cluster) -> list[dict[str, Any]]:
    return [event for event in cluster.events() if "planner" in event]


def flips(cluster: Cluster) -> list[tuple[float, str, str]]:
    """When a worker was told to change, which, and to what."""
    return [
        (event["time"], action["worker"], action["role"])
        for event in thoughts(cluster)
        for action in event["planner"]["actions"]
    ]


def follow(cluster: Cluster, phase: Phase) -> None:
    """Keeps clients at work until the workers have followed. An answer that is wrong or fails raises."""
    with Load(cluster, phase.bodies, phase.clients) as load:

        def has_followed() -> bool:
            load.check()
            return [view["role"] for view in cluster.workers().values()].count(phase.role) >= phase.workers

        wait_until(has_followed, TURN_S, lambda: thoughts(cluster)[-3:])
        answers = load.answers
        wait_until(lambda: load.answers > answers + phase.clients, TURN_S, lambda: load.answers)


@pytest.mark.soak
def test_workers_follow_the_traffic_and_back_and_no_request_notices(tmp_path: Path) -> None:
    options = {
        "prefill": 2,
        "decode": 2,
        "dtype": "float32",
        "kv_blocks": KV_BLOCKS,
        "disaggregation": "always",
        "policy": "least_loaded",
        "planner": "on",
        "planner_cooldown": COOLDOWN_S,
        "planner_flips_per_hour": FLIPS_PER_HOUR,
        "event_log": tmp_path / "events.jsonl",
    }
    told: list[tuple[float, str, str]] = []
    with Cluster(**options) as cluster:
        for phase in (PROMPTS, OUTPUTS, PROMPTS):
            follow(cluster, phase)
            assert {role for _, _, role in flips(cluster)[len(told) :]} == {phase.role}
            told = flips(cluster)
        cluster.wait_for_baseline()
        assert not any(event.get("transition") in ("fail", "refuse") for event in cluster.events())
    assert len(told) <= FLIPS_PER_HOUR
    turns = [(before, after) for before, after in pairwise(told) if before[2] != after[2]]
    assert all(after[0] - before[0] >= COOLDOWN_S for before, after in turns)
