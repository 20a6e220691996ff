"""`baton sim` as it is typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baton.cli.main import app
from baton.errors import ConfigError

FLEET = """\
chunk-tokens = 8192
[[pool]]
role = "prefill"
workers = 2
profile = "h100-80g-llama-8b"
[[pool]]
role = "decode"
workers = 2
profile = "h200-141g-llama-8b"
"""


@pytest.fixture
def fleet(tmp_path: Path) -> str:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return str(path)


def sim(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["sim", *arguments], catch_exceptions=False, env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_same_seed_prints_and_writes_the_same_bytes(fleet: str, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("once.json", "again.json")]
    options = ["--workload", "agent", "--requests", "60", "--rate", "4", "--policy", "power_of_two"]
    once, again = (sim(fleet, *options, "--seed", "7", "--json", str(file)) for file in files)
    assert once == again
    assert files[0].read_bytes() == files[1].read_bytes()
    report = json.loads(files[0].read_text())
    assert (report["workload"], report["policy"], report["seed"]) == ("agent", "power_of_two", 7)
    assert report["outcomes"] == {"finished": 60}


def test_the_table_says_what_users_saw_and_what_it_cost(fleet: str, tmp_path: Path) -> None:
    trace = tmp_path / "two.csv"
    trace.write_text("timestamp,input_length,output_length\n0,1000,10\n100,2000,20\n")
    printed = sim(fleet, "--trace", str(trace), "--speed", "2")
    for wanted in ("TTFT", "TPOT", "ITL", "goodput", "cache hit rate", "busy", "cost per million tokens"):
        assert wanted in printed
    assert re.search(r"requests +│ 2: 2 finished", printed)


def test_plots_are_pictures_in_the_folder(fleet: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "plots"
    sim(fleet, "--requests", "20", "--plots", str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["latency.png", "pools.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())


def test_a_sweep_compares_splits_of_the_fleet(fleet: str, tmp_path: Path) -> None:
    file = tmp_path / "splits.json"
    printed = sim(
        fleet, "--sweep", "--workload", "prompt-heavy", "--requests", "20", "--json", str(file),
        "--plots", str(tmp_path),
    )  # fmt: skip
    splits = json.loads(file.read_text())
    assert [split["prefill_workers"] for split in splits] == [1, 2, 3]
    assert "best" in printed
    assert (tmp_path / "goodput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--policy", "fastest"], "'fastest'.*predicted"),
        (["--workload", "video"], "'video'.*chat"),
        (["--workload", "chat", "--trace", "x.csv"], "exclude"),
        (["--trace", "nowhere.jsonl"], r"nowhere\.jsonl"),
        (["--requests", "10000000", "--json", "nowhere/out.json"], r"nowhere/out\.json"),
        (["--requests", "10000000", "--plots", "/proc/plots"], "/proc/plots"),
    ],
)
def test_what_cannot_be_simulated_is_named_before_the_run(fleet: str, options: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        sim(fleet, *options)
