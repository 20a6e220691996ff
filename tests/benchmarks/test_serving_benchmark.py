"""benchmarks/serving.py against a real HTTP server that counts along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from openai_stand_in import TEMPLATE_TOKENS, TOKENS_PER_WORD, StandIn, serve
from prompts import TokenPrompts
from workload import MalformedTrace, TokenRange, synthetic, traced

SCRIPT = Path(serving.__file__)
FIELDS = {"name", "value", "unit", "peer", "peer_value", "ratio", "target"}
Figures = dict[str, float | None]


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def url(stand_in: StandIn) -> Iterator[str]:
    with serve(stand_in) as address:
        yield address


@pytest.fixture
def bench(url: str, tmp_path: Path) -> Callable[..., tuple[int, Figures]]:
    """Runs the script in this process; returns its exit status and its figures by name."""

    def run(*arguments: str) -> tuple[int, Figures]:
        path = tmp_path / "rows.json"
        status = serving.main(["--url", url, "--json", str(path), *arguments])
        rows: list[dict[str, Any]] = json.loads(path.read_bytes())
        assert all(row.keys() == FIELDS for row in rows)
        return status, {row["name"]: row["value"] for row in rows}

    return run


def write_trace(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_every_request_and_token_is_counted(
    bench: Callable[..., tuple[int, Figures]], stand_in: StandIn
) -> None:
    status, figures = bench("--requests", "6", "--input-tokens", "20:30", "--output-tokens", "5")
    assert status == 0
    lengths = [len(body["prompt"]) for body in stand_in.received]
    assert all(20 <= length <= 30 for length in lengths)
    assert figures["requests_completed"] == 6
    assert figures["requests_failed"] == 0
    assert figures["prompt_tokens"] == sum(lengths)
    assert figures["output_tokens"] == 30
    assert figures["cached_prompt_tokens"] == 18
    for name in ("ttft", "tpot", "itl", "e2e"):
        values = [figures[f"{name}_p{percent}"] for percent in (50, 90, 99)]
        assert None not in values
        assert values == sorted(values, key=lambda value: value or 0)
    assert all(body["ignore_eos"] and body["temperature"] == 0 for body in stand_in.received)


def test_a_chat_prompt_has_the_wanted_tokens_though_only_words_can_be_sent(
    bench: Callable[..., tuple[int, Figures]], stand_in: StandIn
) -> None:
    status, figures = bench(
        "--endpoint", "chat", "--requests", "2", "--input-tokens", "107", "--output-tokens", "3"
    )
    assert (status, figures["prompt_tokens"], figures["output_tokens"]) == (0, 2 * 107, 6)
    words = [body["messages"][0]["content"].split() for body in stand_in.received]
    assert [len(prompt) for prompt in words] == [(107 - TEMPLATE_TOKENS) // TOKENS_PER_WORD] * 2


def test_a_server_that_cannot_tokenize_gets_words(tmp_path: Path) -> None:
    stand_in = StandIn(can_tokenize=False)
    with serve(stand_in) as url:
        assert serving.main(["--url", f"{url}/v1", "--requests", "1", "--input-tokens", "57"]) == 0
    assert len(stand_in.received[0]["prompt"].split()) * TOKENS_PER_WORD + TEMPLATE_TOKENS == 57


def test_failures_are_counted_by_kind_and_the_rest_is_measured(
    bench: Callable[..., tuple[int, Figures]],
) -> None:
    status, figures = bench(
        "--model", "often-full", "--requests", "9", "--output-tokens", "2", "--slo-ttft-ms", "60000"
    )
    assert status == 0
    assert (figures["requests_completed"], figures["requests_failed"]) == (6, 3)
    assert figures["failed: HTTP 429"] == 3
    assert figures["objectives_met"] == pytest.approx(100 * 6 / 9)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["--model", "full"], "HTTP 429"),
        (["--model", "fails-midway"], "error in stream (worker_failed)"),
        (["--model", "truncates"], "stream ended without finish_reason"),
        (["--model", "garbles"], "malformed event"),
        (["--model", "endless", "--timeout", "0.3"], "timeout"),
        (["--model", "endless", "--max-seconds", "0.3"], "cut off at the time limit"),
    ],
    ids=str,
)
def test_exit_status_tells_that_no_request_succeeded(
    bench: Callable[..., tuple[int, Figures]], arguments: list[str], kind: str
) -> None:
    status, figures = bench("--requests", "2", "--output-tokens", "4", *arguments)
    assert (status, figures["requests_failed"], figures[f"failed: {kind}"]) == (1, 2, 2)
    assert figures["ttft_p50"] is None


def test_without_usage_pieces_of_text_are_counted(
    bench: Callable[..., tuple[int, Figures]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, figures = bench("--model", "no-usage", "--requests", "2", "--output-tokens", "4")
    assert figures["output_tokens"] == 8
    assert "2 answers came without usage" in capsys.readouterr().err


def test_the_concurrency_cap_holds(bench: Callable[..., tuple[int, Figures]], stand_in: StandIn) -> None:
    status, _ = bench("--requests", "8", "--concurrency", "3", "--output-tokens", "3")
    assert (status, stand_in.most_at_once) == (0, 3)


def test_a_trace_repeats_tokens_where_it_repeats_hashes(
    bench: Callable[..., tuple[int, Figures]], stand_in: StandIn, tmp_path: Path
) -> None:
    trace = write_trace(
        tmp_path / "trace.jsonl",
        {"timestamp": 5000, "input_length": 1100, "output_length": 4, "hash_ids": [0, 1, 2]},
        {"timestamp": 5010, "input_length": 1536, "output_length": 2, "hash_ids": [0, 1, 3]},
        {"timestamp": 5020, "input_length": 1024, "output_length": 2, "hash_ids": [3, 1]},
    )
    status, figures = bench("--trace", str(trace))
    assert (status, figures["output_tokens"]) == (0, 8)
    prompts = {len(body["prompt"]): body["prompt"] for body in stand_in.received}
    first, second, third = prompts[1100], prompts[1536], prompts[1024]
    assert first[:1024] == second[:1024]
    assert first[1024:] != second[1024:1100]
    assert second[1024:] == third[:512]


def test_scales_shrink_a_trace_and_keep_its_shape(tmp_path: Path) -> None:
    trace = write_trace(
        tmp_path / "trace.jsonl",
        *(
            {"timestamp": 1000 * i, "input_length": 5120, "output_length": 50, "hash_ids": [*range(9), 9 + i]}
            for i in range(4)
        ),
    )
    plan = traced(trace, time_scale=0.5, length_scale=0.1, max_requests=3)
    assert [request.at_s for request in plan] == [0.0, 0.5, 1.0]
    assert {(request.input_tokens, request.output_tokens) for request in plan} == {(512, 5)}
    prompts = [TokenPrompts(range(100), seed=1).make(request) for request in plan]
    assert {len(prompt) for prompt in prompts} == {512}
    assert prompts[0][:459] == prompts[1][:459] == prompts[2][:459]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{]", "line 2: not a JSON object"),
        ("[1]", "line 2: not a JSON object"),
        ({"timestamp": 0, "input_length": 5, "hash_ids": [1]}, "line 2: output_length: missing"),
        (
            {"timestamp": 0, "input_length": "5", "output_length": 1, "hash_ids": [1]},
            "line 2: Expected `int`, got `str` - at `$.input_length`",
        ),
        (
            {"timestamp": 0, "input_length": 0, "output_length": 1, "hash_ids": []},
            "line 2: input_length: is 0, has to be at least 1",
        ),
        (
            {"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [1]},
            "line 2: hash_ids: has 1 ids, input_length 513 takes 2 of 512 tokens",
        ),
        (
            {"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [-1]},
            "line 2: hash_ids: has -1, ids start at 0",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_trace_line_is_named_with_its_field(tmp_path: Path, line: object, complaint: str) -> None:
    good = {"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}
    trace = write_trace(tmp_path / "trace.jsonl", good, line)
    with pytest.raises(MalformedTrace) as caught:
        traced(trace, 1.0, 1.0, None)
    assert complaint in str(caught.value)


def test_poisson_arrivals_are_the_seeds_and_have_the_rate() -> None:
    def arrivals(seed: int) -> list[float]:
        plan = synthetic(4000, 20.0, TokenRange(1, 9), TokenRange(1, 9), 0, seed)
        return [request.at_s for request in plan]

    assert arrivals(1) == arrivals(1) != arrivals(2)
    assert arrivals(1) == sorted(arrivals(1))
    assert arrivals(1)[-1] == pytest.approx(4000 / 20, rel=0.05)


def test_a_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    plan = synthetic(3, float("inf"), TokenRange(50, 50), TokenRange(1, 1), 30, seed=3)
    first, second, third = (TokenPrompts(range(500), seed=3).make(request) for request in plan)
    assert first[:30] == second[:30] == third[:30]
    assert len({tuple(prompt[30:]) for prompt in (first, second, third)}) == 3
    assert {len(prompt) for prompt in (first, second, third)} == {50}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "0"], "0 is not above 0"),
        (["--input-tokens", "9:3"], "9:3 ends below its start"),
        (["--requests", "-1"], "-1 is not at least 1"),
        (["--trace", "t.jsonl", "--rate", "3"], "--rate does not go with --trace"),
        (["--json", "no/such/folder/rows.json"], "there is no folder"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_by_name(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        serving.main(["--url", "http://127.0.0.1:1", *arguments])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_server_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert serving.main(["--url", "http://127.0.0.1:1"]) == 2
    assert "GET http://127.0.0.1:1/v1/models" in " ".join(capsys.readouterr().err.split())


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As from a user's shell, where python finds the modules beside the script."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_script_runs_by_itself_and_quick_is_small(url: str, stand_in: StandIn) -> None:
    done = run_script("--url", url, "--quick")
    assert done.returncode == 0, done.stderr
    assert "ttft_p50" in done.stdout
    assert len(stand_in.received) == 24
    assert "examples:" in run_script("--help").stdout
