"""Workers that change roles in the simulated fleet, at the word of the planner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stepped_traffic import RULES, fleet, steps

from baton.errors import ConfigError
from baton.fleet import Role
from baton.router.planner.rules import Bounds
from baton.sim.fleet_file import FleetSpec, read_fleet
from baton.sim.report import meets_objectives, report_of
from baton.sim.ride import Outcome
from baton.sim.simulation import Run, Simulation
from baton.sim.workload import Workload

PROMPTS, OUTPUTS = (7.0, 2000, 20), (10.0, 100, 200)
THERE_AND_BACK = steps(PROMPTS, OUTPUTS, PROMPTS)


def run(spec: FleetSpec, workload: Workload = THERE_AND_BACK) -> Run:
    return Simulation(spec, workload).run()


@pytest.fixture(scope="module")
def elastic_run() -> Run:
    return run(fleet(6, 2))


def test_every_request_ends_well_and_every_block_comes_back_though_workers_change_roles(
    elastic_run: Run,
) -> None:
    assert {flip.role for flip in elastic_run.flips} == set(Role)
    assert {ride.outcome for ride in elastic_run.rides} == {Outcome.FINISHED}
    assert all(ride.output_tokens == ride.request.output_tokens for ride in elastic_run.rides)
    for worker in [*elastic_run.prefill, *elastic_run.decode]:
        assert worker.blocks.available == worker.blocks.num_blocks
        assert (worker.queued_tokens, worker.leased_sequences) == (0, 0)


def test_more_requests_are_good_than_with_either_split_for_good(elastic_run: Run) -> None:
    def good(of: Run) -> int:
        return sum(meets_objectives(of.spec.objectives, ride) for ride in of.rides)

    assert good(elastic_run) > 1.2 * max(good(run(fleet(6, 2, None))), good(run(fleet(3, 5, None))))


def test_flips_follow_the_traffic_and_none_goes_back_within_the_cooldown(elastic_run: Run) -> None:
    flips = elastic_run.flips
    directions = [flip.role for flip in sorted(flips, key=lambda flip: flip.told_at_s)]
    assert directions[0] is Role.DECODE
    assert directions[-1] is Role.PREFILL
    for flip in flips:
        others = [f for f in flips if f.role is not flip.role and f.told_at_s >= flip.told_at_s]
        assert all(other.told_at_s - flip.told_at_s >= RULES.cooldown_s for other in others)


def test_a_flip_takes_its_second_after_the_work_is_finished_or_moved(elastic_run: Run) -> None:
    for flip in elastic_run.flips:
        assert flip.serves_at_s >= flip.told_at_s + 1.0
        assert flip.serves_at_s < flip.told_at_s + 15.0, "the sequences of a decode worker move"


def test_a_worker_keeps_its_cache_when_it_changes_roles(elastic_run: Run) -> None:
    pools = {worker.worker_id: worker.blocks for worker in elastic_run.prefill}
    changed = [worker for worker in elastic_run.decode if worker.worker_id in pools]
    assert changed
    assert all(worker.blocks is pools[worker.worker_id] for worker in changed)


def test_a_worker_that_changes_roles_draws_on_from_where_it_was(elastic_run: Run) -> None:
    luck = {worker.worker_id: worker.random for worker in elastic_run.prefill}
    changed = [worker for worker in elastic_run.decode if worker.worker_id in luck]
    assert changed
    assert all(worker.random is luck[worker.worker_id] for worker in changed)


def test_steady_traffic_flips_nobody() -> None:
    assert run(fleet(6, 2), steps(PROMPTS, PROMPTS)).flips == []
    assert run(fleet(3, 5), steps(OUTPUTS, OUTPUTS)).flips == []


def test_the_same_run_twice_is_the_same_to_the_byte(elastic_run: Run) -> None:
    assert report_of(run(fleet(6, 2))).json() == report_of(elastic_run).json()


def test_bounds_and_budget_hold() -> None:
    rules = replace(RULES, prefill=Bounds(5), flips_per_hour=3)
    bounded = run(fleet(6, 2, rules))
    assert len(bounded.flips) <= 3
    assert min(sample.prefill for sample in bounded.samples) >= 5


FLEET_FILE = """
[[pool]]
role = "prefill"
workers = 2
profile = "h100-80g-llama-8b"

[[pool]]
role = "decode"
workers = 2
profile = "h200-141g-llama-8b"

[planner]
"""


def test_the_planner_s_table_gives_its_rules_and_the_fleet_s_objectives(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE + "flips-per-hour = 7\nmin-prefill = 0\n\n[objectives]\nttft = 0.5\n")
    elastic = read_fleet(path).elastic
    assert elastic is not None
    assert (elastic.rules.flips_per_hour, elastic.rules.ttft_s) == (7, 0.5)
    assert elastic.rules.prefill == Bounds(0, None)


@pytest.mark.parametrize(
    ("line", "named"),
    [("flips = 3", "flips"), ("cooldown = 0", "cooldown"), ("min-decode = 0", "min-decode")],
)
def test_a_wrong_key_or_value_of_the_planner_s_table_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE + line)
    with pytest.raises(ConfigError) as caught:
        read_fleet(path)
    assert caught.value.field == f"planner.{named}"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("min-workers = 5\nmax-workers = 4", "max-workers is 4, and min-workers is 5"),
        ("min-prefill = 3\nmax-prefill = 2", "max-prefill is 2, and min-prefill is 3"),
        ("min-workers = 2", "min-workers needs max-workers"),
    ],
)
def test_bounds_that_nobody_can_keep_to_are_refused(tmp_path: Path, lines: str, told: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET_FILE + lines)
    with pytest.raises(ConfigError, match=told) as caught:
        read_fleet(path)
    assert caught.value.field == "planner"
