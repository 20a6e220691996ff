"""What the router tells of a request: its transitions in the event log, and metrics that agree with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cluster import BASELINE_S, Cluster, wait_until
from model_folders import prompt_ids

METRICS = (
    "baton_requests_finished_total",
    "baton_prompt_tokens_total",
    "baton_generation_tokens_total",
    "baton_handoff_blocks_total",
    *(
        f"baton_handoff_{stage}_seconds_count"
        for stage in ("queued", "reserve", "first_byte", "last_byte", "acknowledged", "exposed")
    ),
)


@contextmanager
def told(cluster: Cluster) -> Iterator[list[dict[str, Any]]]:
    """The events of what happens inside; filled in on leaving."""
    before = len(cluster.events())
    events: list[dict[str, Any]] = []
    yield events
    cluster.wait_for_baseline()
    events.extend(cluster.events()[before:])


def test_a_request_goes_through_its_states_and_finishes(cluster: Cluster) -> None:
    with told(cluster) as events:
        cluster.complete(prompt_ids(40), max_tokens=5, cache_salt="life")
    assert [event["transition"] for event in events] == [
        "place",
        "schedule",
        "first_tokens",
        "hand_off",
        "finish",
    ]
    assert len({event["request_id"] for event in events}) == 1
    assert events[0] | {"prefill": "prefill-0", "decode": "decode-0", "prompt_tokens": 40} == events[0]
    hand_off = events[3]
    assert (hand_off["blocks"], hand_off["scheme"]) == (3, "shm")
    assert hand_off["bytes"] > 0
    assert min(hand_off[time] for time in ("queued_s", "reserve_s", "first_byte_s", "start_s")) > 0
    assert hand_off["first_byte_s"] <= hand_off["last_byte_s"] <= hand_off["acknowledged_s"]
    assert hand_off["acknowledged_s"] - hand_off["compute_s"] == pytest.approx(hand_off["exposed_s"])
    assert events[-1]["output_tokens"] == 5
    assert events[-1]["e2e_s"] >= events[-1]["ttft_s"] > 0


def test_a_request_of_one_token_finishes_without_a_hand_off(cluster: Cluster) -> None:
    with told(cluster) as events:
        cluster.complete(prompt_ids(40), max_tokens=1)
    assert [event["transition"] for event in events] == ["place", "schedule", "first_tokens", "finish"]


def test_a_stop_string_finishes_a_request_and_does_not_cancel_it(cluster: Cluster) -> None:
    text = cluster.complete(prompt_ids(40)).choices[0]["text"]
    with told(cluster) as events:
        cluster.complete(prompt_ids(40), stop=text[10:13])
    assert events[-1]["transition"] == "finish"


def test_a_bad_request_is_no_request(cluster: Cluster) -> None:
    with told(cluster) as events:
        cluster.post(prompt_ids(5), temperature=9)
    assert events == []


def test_metrics_count_what_the_events_tell(cluster: Cluster) -> None:
    before = [cluster.metric(name) for name in METRICS]
    cluster.complete(prompt_ids(40), max_tokens=5, n=2, cache_salt="metrics")
    after = [cluster.metric(name) for name in METRICS]
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 40, 10, 3, *[1] * 6]


def test_workers_tell_their_transports_and_the_sums_of_their_hand_offs(cluster: Cluster) -> None:
    def handoffs(role: str) -> int:
        return int(cluster.worker(role)["handoffs"]["handoffs"])

    cluster.wait_for_baseline(steady_s=0.6)
    before = {role: handoffs(role) for role in ("prefill", "decode")}
    cluster.complete(prompt_ids(40), max_tokens=5, cache_salt="sums")
    wait_until(
        lambda: all(handoffs(role) == before[role] + 1 for role in before),
        BASELINE_S,
        lambda: (before, {role: handoffs(role) for role in before}),
    )
    prefill, decode = cluster.worker("prefill"), cluster.worker("decode")
    assert prefill["schemes"] == decode["schemes"] == ["shm", "tcp"]
    sums = prefill["handoffs"]
    assert 0 < sums["first_byte_s"] <= sums["last_byte_s"] <= sums["acknowledged_s"]
    assert decode["handoffs"]["reserve_s"] > 0 == sums["reserve_s"]


def test_a_streamed_answer_has_each_token_once_and_ends_with_done(cluster: Cluster) -> None:
    whole = cluster.complete(prompt_ids(40))
    body = {
        "prompt": prompt_ids(40),
        "max_tokens": 64,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    response = cluster.client.post("/v1/completions", json=body).raise_for_status()
    *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    chunks = [json.loads(event) for event in events]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert done == "[DONE]"
    assert [token for choice in choices for token in choice["token_ids"]] == whole.token_ids
    assert "".join(choice["text"] for choice in choices) == whole.choices[0]["text"]
    assert chunks[-1]["usage"]["completion_tokens"] == 64
