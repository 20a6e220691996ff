"""What the simulated fleet does with requests, held against the profile's arithmetic and the workers' rules."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import Role
from baton.router.policies import POLICIES
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import FleetSpec, HardwareProfile, Objectives, Pool
from baton.sim.generators import generate
from baton.sim.report import report_of
from baton.sim.ride import Outcome, Ride
from baton.sim.simulation import Run, Simulation
from baton.sim.workload import SimRequest, Workload, hash_of

BLOCK = 16
HARDWARE = HardwareProfile(
    prefill_tokens_per_s=1000.0,
    decode_step_s=0.02,
    copy_bytes_per_s=1e6,
    kv_bytes_per_token=100.0,
    kv_tokens=100 * BLOCK,
    prefill_s_per_pair=1e-6,
    decode_s_per_sequence=0.002,
    decode_s_per_context_token=1e-5,
    cost_per_hour=3.6,
)

PASSES = msgspec.structs.replace(HARDWARE, prefill_pass_s=0.025, kv_tokens=2000)


def fleet(
    prefill: int = 1, decode: int = 1, hardware: HardwareProfile = HARDWARE, **limits: float
) -> FleetSpec:
    pools = [
        Pool(role.value, role, count, hardware, hardware.cost_per_hour)
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        if count
    ]
    mode = Disaggregation.AUTO if limits.get("local_prefill_tokens") else Disaggregation.ALWAYS
    fields: dict[str, object] = {
        "disaggregation": mode,
        "chunk_tokens": 128,
        "max_running": 8,
        "max_requests": 1000,
        "max_waiting": 512,
        "queue_timeout_s": 1000.0,
        "local_prefill_tokens": 0,
    }
    return FleetSpec(tuple(pools), Objectives(1.0, 0.1), **{**fields, **limits})  # type: ignore[arg-type]


def request(
    number: int, prompt: int, output: int, at_s: float = 0.0, stream: int | None = None
) -> SimRequest:
    stream = number if stream is None else stream
    hashes = tuple(hash_of(stream, block) for block in range((prompt + output - 1) // BLOCK))
    return SimRequest(number, at_s, prompt, output, hashes)


def simulated(spec: FleetSpec, *requests: SimRequest, policy: str = "predicted", seed: int = 0) -> Run:
    return Simulation(spec, Workload("test", BLOCK, requests), policy, seed).run()


def assert_everything_came_back(run: Run) -> None:
    for worker in [*run.prefill, *run.decode]:
        assert worker.blocks.available == worker.blocks.num_blocks
        assert (worker.queued_tokens, worker.queued_s) == (0, 0)
        assert (worker.leased_sequences, worker.leased_context_tokens) == (0, 0)


def figures(ride: Ride) -> tuple[float, float]:
    assert ride.ttft_s is not None
    assert ride.tpot_s is not None
    return ride.ttft_s, ride.tpot_s


def test_an_idle_fleet_takes_the_times_of_the_profile() -> None:
    run = simulated(fleet(), request(0, prompt=100, output=3))
    ttft_s, tpot_s = figures(run.rides[0])
    prefill_s = HARDWARE.speeds().prefill_s(100, 0)
    handoff_s = 100 * 100.0 / 1e6
    steps_s = HARDWARE.speeds().step_s(1, 101) + HARDWARE.speeds().step_s(1, 102)
    assert ttft_s == pytest.approx(prefill_s)
    assert tpot_s == pytest.approx((handoff_s + steps_s) / 2)
    assert run.handoff_bytes == 100 * 100.0


def test_what_is_predicted_of_an_idle_fleet_comes_true() -> None:
    (ride,) = simulated(fleet(), request(0, prompt=300, output=2)).rides
    assert ride.placement is not None
    assert ride.ttft_s == pytest.approx(ride.placement.prediction.ttft_s)


def test_steps_spread_as_the_profile_says_and_alike_for_a_seed() -> None:
    spec = fleet(hardware=msgspec.structs.replace(HARDWARE, step_spread=0.3))
    requests = [request(number, prompt=100, output=3, at_s=10.0 * number) for number in range(300)]
    usual_s = HARDWARE.speeds().prefill_s(100, 0)
    first, again, other = (simulated(spec, *requests, seed=seed) for seed in (1, 1, 2))
    logarithms = [math.log(figures(ride)[0] / usual_s) for ride in first.rides]
    assert statistics.fmean(logarithms) == pytest.approx(0, abs=0.06)
    assert statistics.stdev(logarithms) == pytest.approx(0.3, rel=0.2)
    assert [figures(ride) for ride in first.rides] == [figures(ride) for ride in again.rides]
    assert [figures(ride) for ride in first.rides] != [figures(ride) for ride in other.rides]


def test_handoffs_spread_as_the_profile_says_and_first_tokens_do_not() -> None:
    hardware = msgspec.structs.replace(HARDWARE, handoff_latency_s=0.5, handoff_spread=0.3)
    requests = [request(number, prompt=16, output=2, at_s=10.0 * number) for number in range(300)]
    told = [figures(ride) for ride in simulated(fleet(hardware=hardware), *requests).rides]
    assert len({round(ttft_s, 9) for ttft_s, _ in told}) == 1
    assert statistics.stdev(math.log(tpot_s) for _, tpot_s in told) == pytest.approx(0.3, rel=0.25)


def test_decode_waits_for_the_blocks_and_for_the_routers_word() -> None:
    """Each is waited for where it is the later."""

    def second_token_s(latency_s: float, start_s: float) -> float:
        hardware = msgspec.structs.replace(HARDWARE, handoff_latency_s=latency_s)
        spec = msgspec.structs.replace(fleet(hardware=hardware), handoff_start_s=start_s)
        (ride,) = simulated(spec, request(0, prompt=16, output=2)).rides
        return figures(ride)[1]

    at_once_s = second_token_s(0.0, 0.0)
    assert second_token_s(0.0, 0.25) == pytest.approx(at_once_s + 0.25, abs=0.01)
    assert second_token_s(0.5, 0.25) == second_token_s(0.5, 0.0) == pytest.approx(at_once_s + 0.5, abs=0.01)


@settings(deadline=None, max_examples=40)
@given(
    prompt=st.integers(1, 1500),
    chunk_tokens=st.sampled_from([64, 512]),
    chunk_s=st.sampled_from([None, math.inf, 0.05, 0.3]),
)
def test_what_is_predicted_counts_the_passes_that_a_long_prompt_takes(
    prompt: int, chunk_tokens: int, chunk_s: float | None
) -> None:
    """But for what is lost where no further token fits, and where now the one limit binds and now the other."""
    spec = fleet(hardware=PASSES, chunk_tokens=chunk_tokens, chunk_s=chunk_s)  # type: ignore[arg-type]
    (ride,) = simulated(spec, request(0, prompt, output=2)).rides
    assert ride.placement is not None
    ttft_s, predicted_s = figures(ride)[0], ride.placement.prediction.ttft_s
    assert ttft_s == pytest.approx(predicted_s, rel=0.05, abs=1.001 * PASSES.prefill_pass_s)
    assert ttft_s >= predicted_s * 0.999


def test_a_short_prompt_waits_for_less_of_a_long_one_where_a_steps_time_is_limited() -> None:
    requests = request(0, prompt=900, output=2), request(1, prompt=64, output=2, at_s=0.001)
    whole_s, limited_s = (
        figures(simulated(fleet(chunk_tokens=1024, chunk_s=chunk_s), *requests).rides[1])[0]
        for chunk_s in (math.inf, 0.1)
    )
    assert limited_s < 0.1 + 2 * HARDWARE.speeds().prefill_s(64, 0)
    assert whole_s > HARDWARE.speeds().prefill_s(900, 0)


def test_blocks_leave_while_the_next_chunk_is_computed() -> None:
    run = simulated(fleet(), request(0, prompt=256, output=2))
    _, gap_s = figures(run.rides[0])
    assert gap_s == pytest.approx(128 * 100.0 / 1e6 + HARDWARE.speeds().step_s(1, 257))


def test_prompts_share_the_token_budget_of_a_step_in_order_of_arrival() -> None:
    run = simulated(fleet(), *(request(number, prompt=64, output=2) for number in range(4)))
    both_s = 2 * HARDWARE.speeds().prefill_s(64, 0)
    alone_s = both_s / 2
    expected = [alone_s, alone_s + both_s, alone_s + both_s, 2 * alone_s + both_s]
    assert [figures(ride)[0] for ride in run.rides] == pytest.approx(expected)


def test_sequences_decode_together_and_each_slows_the_step() -> None:
    together = simulated(fleet(), *(request(number, prompt=16, output=40) for number in range(4)))
    alone = simulated(fleet(), request(0, prompt=16, output=40))
    assert figures(together.rides[0])[1] > figures(alone.rides[0])[1]
    assert together.duration_s < 4 * alone.duration_s


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    run = simulated(fleet(), request(0, 320, 2), request(1, 330, 2, at_s=10.0, stream=0))
    assert [ride.cached_tokens for ride in run.rides] == [0, 320]
    assert report_of(run).cache_hit_rate == pytest.approx(320 / 650)
    assert run.handoff_bytes == (320 + 10) * 100.0


def test_the_next_turn_finds_what_decode_left_and_is_prefilled_there() -> None:
    first, second = request(0, 320, 65), request(1, 380, 2, at_s=10.0, stream=0)
    run = simulated(fleet(local_prefill_tokens=64), first, second)
    assert run.rides[1].prefill is None
    assert run.rides[1].cached_tokens == 368


def test_without_prefill_workers_decode_computes_prompts_a_chunk_a_step() -> None:
    run = simulated(fleet(prefill=0), request(0, prompt=300, output=3))
    assert run.rides[0].ttft_s == pytest.approx(HARDWARE.speeds().prefill_s(300, 0))
    assert run.handoff_bytes == 0
    assert_everything_came_back(run)


def test_what_the_limits_refuse_is_counted_by_reason() -> None:
    too_long = request(9, 100 * BLOCK, 1)
    refused = simulated(
        fleet(max_requests=2, max_waiting=0), too_long, *(request(n, 64, 2) for n in range(3))
    )
    late = simulated(fleet(queue_timeout_s=0.2), *(request(number, 128, 2) for number in range(4)))
    assert report_of(refused).outcomes == {"finished": 2, "overloaded": 1, "too_long": 1}
    assert report_of(late).outcomes == {"finished": 2, "queue_timeout": 2}
    for run in (refused, late):
        assert_everything_came_back(run)


def test_a_full_pool_preempts_the_youngest_and_everyone_gets_all_tokens() -> None:
    tight = msgspec.structs.replace(HARDWARE, kv_tokens=8 * BLOCK)
    run = simulated(fleet(hardware=tight), *(request(number, 16, 60) for number in range(4)))
    assert run.decode[0].preemptions > 0
    assert [ride.output_tokens for ride in run.rides] == [60] * 4
    assert run.rides[0].last_token_at_s == min(ride.last_token_at_s for ride in run.rides)
    assert_everything_came_back(run)


requests = st.builds(
    request,
    number=st.just(0),
    prompt=st.integers(1, 200),
    output=st.integers(1, 60),
    at_s=st.floats(0, 2),
    stream=st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(requests, min_size=1, max_size=25),
    policy=st.sampled_from(list(POLICIES)),
    prefill=st.integers(0, 2),
    decode=st.integers(1, 2),
    blocks=st.integers(17, 40),
    limits=st.fixed_dictionaries(
        {"queue_timeout_s": st.sampled_from([0.3, 1000.0]), "local_prefill_tokens": st.sampled_from([0, 64])}
    ),
)
def test_every_request_ends_once_and_everything_comes_back(
    drawn: list[SimRequest], policy: str, prefill: int, decode: int, blocks: int, limits: dict[str, float]
) -> None:
    in_order = sorted(drawn, key=lambda one: one.arrival_s)
    sent = [replace(one, number=number) for number, one in enumerate(in_order)]
    hardware = msgspec.structs.replace(HARDWARE, kv_tokens=blocks * BLOCK)
    run = simulated(fleet(prefill, decode, hardware, **limits), *sent, policy=policy)
    assert_everything_came_back(run)
    assert len(run.rides) == len(sent)
    finished = [ride for ride in run.rides if ride.outcome is Outcome.FINISHED]
    assert [ride.output_tokens for ride in finished] == [ride.request.output_tokens for ride in finished]
    assert len(run.gaps) == sum(ride.output_tokens - 1 for ride in finished)
    assert all(ride.outcome is not None for ride in run.rides)


def test_the_same_seed_gives_the_same_bytes() -> None:
    def report(seed: int) -> str:
        workload = generate("chat", 150, 20.0, seed)
        return report_of(Simulation(_big_fleet(), workload, "power_of_two", seed).run()).json()

    assert report(1) == report(1) != report(2)


def _big_fleet() -> FleetSpec:
    hardware = msgspec.structs.replace(HARDWARE, prefill_tokens_per_s=20_000.0, kv_tokens=60_000)
    return fleet(4, 4, hardware, max_running=64, local_prefill_tokens=64)


def test_predicted_placement_meets_more_objectives_than_any_other_policy_under_load() -> None:
    workload = generate("shared-prefix", 600, 45.0, 3)
    attained = {
        name: report_of(Simulation(_big_fleet(), workload, name).run()).attainment for name in POLICIES
    }
    best = max(value for name, value in attained.items() if name != "predicted")
    assert attained["predicted"] >= best - 0.02, attained
    assert attained["predicted"] >= 1.3 * attained["round_robin"], attained


def test_round_robin_spreads_and_pools_are_reported_by_role() -> None:
    run = simulated(fleet(2, 2), *(request(n, 64, 4, at_s=n) for n in range(8)), policy="round_robin")
    assert Counter(worker.served_requests for worker in [*run.prefill, *run.decode]) == {4: 4}
    report = report_of(run)
    assert [(pool.role, pool.workers) for pool in report.pools] == [("prefill", 2), ("decode", 2)]
    assert all(0 < pool.utilisation < 1 for pool in report.pools)
    assert report.cost == pytest.approx(4 * 3.6 * report.duration_s / 3600)
    assert report.cost_per_million_output_tokens == pytest.approx(report.cost / 32 * 1e6)
