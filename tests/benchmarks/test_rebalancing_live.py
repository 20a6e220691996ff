"""What the live benchmark of rebalancing sends, how workers are held to their shares, and what it makes of runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import rebalancing_live
from cpu_share import PERIOD_US, NoCpuQuota, cpu_share
from open_loop import send
from rebalancing_figures import PHASES, SPLITS, STEADY, TURNING, Limits, best_split, figures, told
from rich.progress import Progress
from turning_traffic import (
    OUTPUT_HEAVY,
    PROMPT_HEAVY,
    Answer,
    Kind,
    Objectives,
    Run,
    Sent,
    good_by_time,
    soonest_return_s,
    traffic,
)

PROMPTS = Kind(PROMPT_HEAVY, 5.0, 400, 8)
OUTPUTS = Kind(OUTPUT_HEAVY, 8.0, 32, 100)
OBJECTIVES = Objectives(1.0, 0.1)
LIMITS = Limits(phase_s=10.0, cooldown_s=10.0, flips_per_hour=30)
TOKEN = b'data: {"id": "x", "choices": [{"token_ids":[7]}]}\n\n'


def run_of(name: str, good: list[int], missed: int = 0, changes: Mapping[float, str] | None = None) -> Run:
    """So many good requests in each phase, and to each phase `missed` more."""
    answers = [
        Answer(Sent(10.0 * phase, phase, 1, 1), ttft_s=0.5 if number < count else 2.0)
        for phase, count in enumerate(good)
        for number in range(count + missed)
    ]
    decisions: list[dict[str, Any]] = [
        {"at_s": at_s, "reason": f"{role} is pressed", "actions": [{"worker": "w", "role": role}]}
        for at_s, role in (changes or {}).items()
    ]
    return Run(name, answers, decisions)


def all_runs() -> dict[str, Run]:
    good = {"3:1": {PROMPT_HEAVY: 40, OUTPUT_HEAVY: 0}, "2:2": {PROMPT_HEAVY: 30, OUTPUT_HEAVY: 30}}
    good["1:3"] = {PROMPT_HEAVY: 5, OUTPUT_HEAVY: 50}
    runs = [run_of(f"{split} {kind}", [good[split][kind]]) for split in SPLITS for kind in set(PHASES)]
    runs.append(
        run_of(TURNING, [40, 45, 38], missed=2, changes={11.0: "decode", 13.0: "decode", 24.5: "prefill"})
    )
    runs += [run_of(f"{STEADY} {kind}", [40]) for kind in set(PHASES)]
    return {run.name: run for run in runs}


def test_traffic_turns_at_its_times_and_comes_again_the_same() -> None:
    plan = traffic([PROMPTS, OUTPUTS, PROMPTS], phase_s=60.0, warm_up_s=10.0, seed=3)
    assert [sent.at_s for sent in plan] == sorted(sent.at_s for sent in plan)
    phases = [[sent for sent in plan if sent.phase == number] for number in (-1, 0, 1, 2)]
    assert all(-10.0 <= sent.at_s < 0 for sent in phases[0])
    for number, (kind, phase) in enumerate(zip((PROMPTS, OUTPUTS, PROMPTS), phases[1:], strict=True)):
        assert all(60.0 * number <= sent.at_s < 60.0 * (number + 1) for sent in phase)
        assert len(phase) == pytest.approx(60 * kind.rate_rps, rel=0.25)
        assert all(abs(sent.prompt_tokens - kind.prompt_tokens) <= kind.prompt_tokens / 4 for sent in phase)
        assert all(abs(sent.output_tokens - kind.output_tokens) <= kind.output_tokens / 4 for sent in phase)
    assert [sent.prompt_tokens for sent in phases[1]] == [sent.prompt_tokens for sent in phases[3]]
    assert [sent.at_s + 120 for sent in phases[1]] == pytest.approx([sent.at_s for sent in phases[3]])
    assert [s.prompt_tokens for s in phases[0]] != [s.prompt_tokens for s in phases[1][: len(phases[0])]]
    assert traffic([PROMPTS], 60.0, 10.0, seed=3) == [*phases[0], *phases[1]]


def test_a_request_is_good_within_both_objectives() -> None:
    sent = Sent(0.0, 0, 1, 2)
    assert OBJECTIVES.are_met_by(Answer(sent, 1.0, 0.1))
    assert OBJECTIVES.are_met_by(Answer(sent, 1.0, None))
    assert not OBJECTIVES.are_met_by(Answer(sent, 1.1, 0.1))
    assert not OBJECTIVES.are_met_by(Answer(sent, 1.0, 0.2))
    assert not OBJECTIVES.are_met_by(Answer(sent))


def test_goodput_is_held_against_the_best_split_of_each_phase() -> None:
    runs = all_runs()
    assert [best_split(runs, kind, OBJECTIVES) for kind in PHASES] == ["3:1", "1:3", "3:1"]
    rows = {(row.name, row.peer): row for row in figures(runs, LIMITS, OBJECTIVES)}
    hindsight = rows["goodput over three phases", "best split of each phase (3:1, 1:3, 3:1)"]
    assert hindsight.value == pytest.approx(123 / 30)
    assert hindsight.peer_value == pytest.approx(130 / 30)
    assert hindsight.ratio == pytest.approx(123 / 130)
    always = rows["goodput over three phases", "the best split all the time (2:2)"]
    assert always.ratio == pytest.approx(123 / 90)
    assert rows["role changes", None].value == 3
    assert rows["soonest change the other way", None].value == 11.5
    assert rows["role changes under steady traffic", None].value == 0
    assert rows["good requests, phase 2, planner", None].value == pytest.approx(100 * 45 / 47)


def test_of_splits_that_serve_all_the_soonest_is_the_best() -> None:
    runs = all_runs()
    for split, tpot_s in zip(SPLITS, (0.09, 0.05, 0.07), strict=True):
        answers = [Answer(Sent(0.0, 0, 32, 100), 0.1, tpot_s)]
        runs[f"{split} {OUTPUT_HEAVY}"] = Run(f"{split} {OUTPUT_HEAVY}", answers, [])
    assert best_split(runs, OUTPUT_HEAVY, OBJECTIVES) == "2:2"


def test_a_run_is_told_with_who_changed_roles_when_and_why() -> None:
    told_lines = told(all_runs()[TURNING], OBJECTIVES).splitlines()
    assert told_lines[1].startswith("turning, phase 2: 45 good of 47, 0 failed in all")
    assert told_lines[-1] == "    24.5 s: w to prefill: prefill is pressed"
    assert (
        soonest_return_s(run_of("one way", [1], changes={1.0: "decode", 2.0: "decode"}).role_changes())
        is None
    )


def test_goodput_over_time_counts_requests_when_they_were_sent() -> None:
    middles, sent, good = good_by_time(all_runs()[TURNING], 10.0, OBJECTIVES)
    assert middles == [5.0, 15.0, 25.0]
    assert sent == pytest.approx([4.2, 4.7, 4.0])
    assert good == pytest.approx([4.0, 4.5, 3.8])


def test_failed_requests_and_those_given_up_are_told_apart() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if b'"max_tokens": 3' in body:
            writer.write(b"HTTP/1.1 429 Too Many Requests\r\n\r\n")
        elif b'"max_tokens": 2' in body:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + TOKEN + TOKEN)
        else:
            await reader.read()  # until the client leaves
        writer.close()

    async def answers() -> list[Answer]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            plan = [Sent(0.01 * tokens, 0, 5, tokens) for tokens in (1, 2, 3)]
            return (await send(f"http://{host}:{port}", plan, 100, 0.5, Progress(disable=True), "test"))[0]

    given_up, served, failed = asyncio.run(answers())
    assert (given_up.ttft_s, given_up.error) == (None, "")
    assert served.ttft_s is not None
    assert served.tpot_s is not None
    assert "429" in failed.error


def test_runs_that_were_kept_are_known_again(tmp_path: Path) -> None:
    runs = all_runs()
    rebalancing_live.keep(tmp_path / "runs", "3:1", [runs[f"3:1 {kind}"] for kind in PHASES[:2]])
    rebalancing_live.keep(tmp_path / "runs", TURNING, [runs[TURNING]])
    names = (f"3:1 {PROMPT_HEAVY}", f"3:1 {OUTPUT_HEAVY}", TURNING)
    assert rebalancing_live.known_in(tmp_path / "runs") == {name: runs[name] for name in names}
    assert rebalancing_live.known_in(None) == {}


@pytest.mark.parametrize("text", ["3", "3:300", "3:300:0", "0:300:8", "x:300:8", "3:300:8:1", "inf:300:8"])
def test_a_kind_of_traffic_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        rebalancing_live.parser().parse_args(["--prompt-heavy", text])
    assert "--prompt-heavy" in capsys.readouterr().err


def test_only_is_refused_where_nothing_would_be_kept() -> None:
    with pytest.raises(SystemExit):
        rebalancing_live.main(["--only", "3:1"])


def test_a_machine_without_control_groups_is_told_so(tmp_path: Path) -> None:
    with (
        pytest.raises(NoCpuQuota, match=f"{tmp_path}: no control groups for cpu"),
        cpu_share("w", 0.3, tmp_path),
    ):
        pass


def test_version_2_groups_get_their_quota_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    with cpu_share("w", 0.25, tmp_path) as hold:
        hold(123)
        [group] = (path for path in tmp_path.iterdir() if path.is_dir())
        written = {path.name: path.read_text() for path in group.iterdir()}
        for name in written:
            (group / name).unlink()  # where it is no plain folder, they vanish with it
    assert written == {"cpu.max": f"{PERIOD_US // 4} {PERIOD_US}", "cgroup.procs": "123"}
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert not group.exists()


def test_a_process_is_held_to_its_share_with_what_it_starts() -> None:
    show = "import subprocess; subprocess.run(['cat', '/proc/self/cgroup'])"
    with subprocess.Popen(
        [sys.executable, "-c", f"input(); {show}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            with cpu_share("baton-test", 0.5) as hold:
                hold(process.pid)
                groups, _ = process.communicate("\n", timeout=60)
        except NoCpuQuota as error:
            process.kill()
            pytest.skip(str(error))
    assert "/baton-test-" in groups
