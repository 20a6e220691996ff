from __future__ import annotations

import json
from pathlib import Path

import pytest

from baton.sim.generators import WORKLOADS, generate
from baton.sim.trace import TraceError, read_trace
from baton.sim.workload import SimRequest, Workload

ROW = {"timestamp": 1000, "input_length": 1300, "output_length": 7, "hash_ids": [3, 4, 5]}


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def csv_file(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def shared_blocks(first: SimRequest, second: SimRequest) -> int:
    return sum(a == b for a, b in zip(first.hashes, second.hashes, strict=False))


def test_a_line_of_a_trace_is_a_request_with_the_hashes_of_its_full_blocks(tmp_path: Path) -> None:
    trace = read_trace(jsonl(tmp_path, ROW, {**ROW, "timestamp": 1500, "hash_ids": [3, 9, 9]}))
    first, second = trace.requests
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 1300, 7)
    assert second.arrival_s == 0.5
    assert (trace.block_tokens, len(first.hashes)) == (512, 2)
    assert shared_blocks(first, second) == 1


@pytest.mark.parametrize(
    ("rows", "line", "field"),
    [
        (["{"], 1, "line"),
        (["[]"], 1, "line"),
        ([ROW, {**ROW, "timestamp": None}], 2, "timestamp"),
        ([ROW, {**ROW, "timestamp": 999}], 2, "timestamp"),
        ([ROW, {**ROW, "timestamp": float("nan")}], 2, "timestamp"),
        ([ROW, "", {**ROW, "input_length": 0}], 3, "input_length"),
        ([{**ROW, "input_length": 10**9}], 1, "input_length"),
        ([{**ROW, "output_length": 1.5}], 1, "output_length"),
        ([{**ROW, "output_length": True}], 1, "output_length"),
        ([{**ROW, "hash_ids": [1]}], 1, "hash_ids"),
        ([{**ROW, "hash_ids": [1, -2, 3]}], 1, "hash_ids"),
        ([{k: v for k, v in ROW.items() if k != "hash_ids"}], 1, "hash_ids"),
    ],
)
def test_a_malformed_trace_is_refused_by_line_and_field(
    tmp_path: Path, rows: list[object], line: int, field: str
) -> None:
    with pytest.raises(TraceError, match=rf"trace\.jsonl: line {line}: {field} ") as raised:
        read_trace(jsonl(tmp_path, *rows))
    assert raised.value.field == field


def test_a_csv_gives_lengths_and_prompts_of_a_session_share_their_prefix(tmp_path: Path) -> None:
    trace = read_trace(
        csv_file(
            tmp_path,
            "timestamp,input_length,output_length,session\n0,640,5,a\n10.5,1280,5,a\n20,640,5,b\n30,640,5,\n",
        )
    )
    a, a_later, b, single = trace.requests
    assert [r.session_key for r in trace.requests] == ["a", "a", "b", None]
    assert a_later.arrival_s == pytest.approx(0.0105)
    assert [shared_blocks(a, other) for other in (a_later, b, single)] == [10, 0, 0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("timestamp,input_length\n1,2\n", "line 1: output_length"),
        ("timestamp,input_length,output_length\n0,5,5\n0,many,5\n", "line 3: input_length is 'many'"),
        ("timestamp,input_length,output_length\n0,5\n", "line 2: output_length"),
        ("timestamp,input_length,output_length\n", "no request"),
    ],
)
def test_a_malformed_csv_is_refused_by_line_and_field(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(TraceError, match=named):
        read_trace(csv_file(tmp_path, text))


def test_a_trace_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name in ("nowhere.jsonl", "trace.parquet", "binary.jsonl"):
        with pytest.raises(TraceError, match=name):
            read_trace(tmp_path / name)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_generated_workload_depends_on_its_seed_alone(name: str) -> None:
    first, again, other = (generate(name, 50, 5.0, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    arrivals = [request.arrival_s for request in first.requests]
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == 50
    for request in first.requests:
        assert len(request.hashes) >= request.prompt_tokens // first.block_tokens


def test_what_can_be_reused_differs_between_workloads_as_their_names_say() -> None:
    rates = {name: generate(name, 300, 5.0, 0).unlimited_hit_rate() for name in WORKLOADS}
    assert rates["prompt-heavy"] == rates["output-heavy"] == 0
    assert min(rates["chat"], rates["agent"], rates["shared-prefix"]) > 0.5


def test_a_faster_workload_keeps_its_requests() -> None:
    workload = Workload("two", 64, [SimRequest(0, 0.0, 9, 1, ()), SimRequest(1, 8.0, 9, 1, ())])
    assert [request.arrival_s for request in workload.at_rate(4).requests] == [0.0, 2.0]
