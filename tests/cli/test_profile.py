"""`baton profile` as it is typed."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from baton.cli.main import app
from baton.sim.fleet_file import read_profile


def test_what_profile_prints_is_a_worker_that_sim_can_try(tmp_path: Path) -> None:
    options = ["--threads", "1", "--kv-blocks", "64", "--cost-per-hour", "0.5"]
    result = CliRunner().invoke(app, ["profile", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (tmp_path / "here.toml").write_text(result.stdout)
    here = read_profile("here.toml", tmp_path)
    assert (here.kv_tokens, here.cost_per_hour) == (1024, 0.5)
    assert here.speeds().prefill_s(256, 0) > here.speeds().step_s(1, 0) > 0
