"""Workers that come to the simulated fleet, and leave it, at the word of the planner."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from stepped_traffic import HARDWARE, PHASE_S, RULES, fleet, steps

from baton.fleet import Role
from baton.router.planner.rules import Bounds
from baton.sim.fleet_file import ElasticSpec, FleetSpec
from baton.sim.report import meets_objectives, report_of
from baton.sim.ride import Outcome
from baton.sim.simulation import Run, Simulation

START_S = 10.0
QUIET, BUSY = (2.0, 1000, 20), (6.0, 2000, 20)
THERE_AND_BACK = steps(QUIET, BUSY, BUSY, QUIET, QUIET)
MOST = 8


def scaling(prefill: int, decode: int, most: int = MOST) -> FleetSpec:
    rules = replace(RULES, workers=Bounds(2, most), scale_in_after_s=20.0, scales_per_hour=40)
    return msgspec.structs.replace(fleet(prefill, decode), elastic=ElasticSpec(rules, start_s=START_S))


@pytest.fixture(scope="module")
def scaled() -> Run:
    return Simulation(scaling(2, 1), THERE_AND_BACK).run()


def workers_at(run: Run, at_s: float) -> int:
    """Those that take requests."""
    sample = max((sample for sample in run.samples if sample.at_s <= at_s), key=lambda sample: sample.at_s)
    return sample.prefill + sample.decode


def test_workers_come_as_traffic_grows_and_leave_when_it_is_over(scaled: Run) -> None:
    assert workers_at(scaled, PHASE_S) <= 3
    assert workers_at(scaled, 3 * PHASE_S) > 4
    assert workers_at(scaled, 5 * PHASE_S) < workers_at(scaled, 3 * PHASE_S)
    report = report_of(scaled)
    assert report.workers_started > 0
    assert 0 < report.workers_stopped <= report.workers_started + 3


def test_there_are_never_more_than_may_be(scaled: Run) -> None:
    assert max(sample.prefill + sample.decode for sample in scaled.samples) <= MOST
    alone = Simulation(scaling(2, 1, most=4), THERE_AND_BACK).run()
    assert max(sample.prefill + sample.decode for sample in alone.samples) == 4


def test_prompts_that_go_on_from_the_router_s_queue_to_new_workers_are_not_taken_for_more_traffic() -> None:
    backlogged = Simulation(scaling(2, 1, most=20), THERE_AND_BACK).run()
    assert 4 < max(sample.prefill + sample.decode for sample in backlogged.samples) <= 6


def test_who_is_ordered_serves_once_it_has_started_and_not_before(scaled: Run) -> None:
    late = [stay.from_s for stay in scaled.stays.values() if stay.from_s > 0]
    first_s = min(late)
    before = [sample for sample in scaled.samples if sample.at_s < first_s + START_S]
    assert max(sample.prefill + sample.decode for sample in before) <= 3
    assert all(worker_id in scaled.stays for worker_id in served_by(scaled))
    for ride in scaled.rides:
        assert ride.decode is not None
        stay = scaled.stays[ride.decode.worker_id]
        assert ride.last_token_at_s >= stay.from_s + (START_S if stay.from_s else 0.0)
        assert stay.until_s is None or ride.last_token_at_s <= stay.until_s


def served_by(run: Run) -> set[str]:
    return {worker.worker_id for worker in [*run.prefill, *run.decode]}


def test_every_request_ends_well_and_every_block_comes_back_though_workers_leave(scaled: Run) -> None:
    assert {ride.outcome for ride in scaled.rides} == {Outcome.FINISHED}
    for worker in [*scaled.prefill, *scaled.decode]:
        assert worker.blocks.available == worker.blocks.num_blocks
        assert (worker.queued_tokens, worker.leased_sequences) == (0, 0)


def test_each_worker_costs_what_its_time_costs_from_the_order_until_it_is_gone(scaled: Run) -> None:
    report = report_of(scaled)
    paid_s = sum(
        min(stay.until_s or report.duration_s, report.duration_s) - min(stay.from_s, report.duration_s)
        for stay in scaled.stays.values()
    )
    assert report.cost == pytest.approx(paid_s / 3600)
    assert report.cost_per_hour == pytest.approx(paid_s / report.duration_s)
    assert sum(pool.mean_workers for pool in report.pools) == pytest.approx(paid_s / report.duration_s)


def test_who_leaves_stays_until_the_kv_that_moves_has_gone() -> None:
    slow = msgspec.structs.replace(HARDWARE, copy_bytes_per_s=1e6)
    spec = scaling(1, 5)
    pools = tuple(msgspec.structs.replace(pool, hardware=slow) for pool in spec.pools)
    long_answers = (2.0, 100, 300)
    run = Simulation(msgspec.structs.replace(spec, pools=pools), steps(long_answers, long_answers)).run()
    assert {ride.outcome for ride in run.rides} == {Outcome.FINISHED}
    assert report_of(run).workers_stopped > 0


def test_it_serves_far_more_than_the_fleet_that_it_began_as_and_costs_less_than_the_largest(
    scaled: Run,
) -> None:
    large = Simulation(fleet(5, 3), THERE_AND_BACK).run()
    small = Simulation(fleet(2, 1), THERE_AND_BACK).run()
    assert 1.5 * good(small) < good(scaled)
    assert good(scaled) > 0.6 * good(large)
    assert report_of(scaled).cost < 0.8 * report_of(large).cost


def good(run: Run) -> int:
    return sum(meets_objectives(run.spec.objectives, ride) for ride in run.rides)


def test_a_fleet_without_prefill_workers_gets_them_of_the_kind_that_it_has() -> None:
    spec = scaling(1, 1)
    decode = tuple(pool for pool in spec.pools if pool.role is Role.DECODE)
    run = Simulation(msgspec.structs.replace(spec, pools=decode), steps(QUIET, QUIET)).run()
    assert {ride.outcome for ride in run.rides} == {Outcome.FINISHED}
    assert {stay.pool.name for stay in run.stays.values()} == {"d"}
    assert len(run.stays) > 1


def test_the_same_run_twice_is_the_same_to_the_byte_though_workers_come_and_leave(scaled: Run) -> None:
    again = Simulation(scaling(2, 1), THERE_AND_BACK).run()
    assert report_of(again).json() == report_of(scaled).json()
