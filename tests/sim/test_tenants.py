"""Tenants on a simulated fleet: shares under overload, spare capacity, and the bounds of the queue."""

from __future__ import annotations

import msgspec
import pytest

from baton.fleet import Role
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import FleetSpec, HardwareProfile, Objectives, Pool
from baton.sim.report import report_of
from baton.sim.ride import Outcome
from baton.sim.simulation import Run, Simulation
from baton.sim.tenants import TenantLoad, served_tokens_per_s, tenants_workload

HARDWARE = HardwareProfile(
    prefill_tokens_per_s=10_000.0,
    decode_step_s=0.01,
    copy_bytes_per_s=1e9,
    kv_bytes_per_token=100.0,
    kv_tokens=100_000,
)
SPEC = FleetSpec(
    tuple(Pool(role.value, role, 1, HARDWARE, 1.0) for role in (Role.PREFILL, Role.DECODE)),
    Objectives(),
    chunk_tokens=2048,
    max_running=64,
    max_requests=1024,
    queue_timeout_s=30.0,
    disaggregation=Disaggregation.ALWAYS,
    local_prefill_tokens=0,
    max_waiting=200,
)
DURATION_S = 60.0
LIGHT, HEAVY = TenantLoad("light", 2.0), TenantLoad("heavy", 20.0)


def simulated(*loads: TenantLoad, spec: FleetSpec = SPEC) -> Run:
    workload = tenants_workload(loads, prompt_median=1000, output_median=20, duration_s=DURATION_S, seed=3)
    return Simulation(spec, workload).run()


def test_a_tenant_within_its_share_loses_nothing_to_one_that_sends_ten_times_as_much() -> None:
    run = simulated(LIGHT, HEAVY)
    failed = {ride.request.tenant for ride in run.rides if ride.outcome is not Outcome.FINISHED}
    assert failed == {"heavy"}


def test_tenants_that_all_want_more_than_their_share_get_the_same() -> None:
    run = simulated(TenantLoad("light", 10.0), TenantLoad("heavy", 100.0))
    light, heavy = (served_tokens_per_s(run, name, to_s=DURATION_S) for name in ("light", "heavy"))
    assert light == pytest.approx(heavy, rel=0.15)


def test_capacity_that_nobody_else_wants_goes_to_whoever_does() -> None:
    alone, both = simulated(HEAVY), simulated(LIGHT, HEAVY)
    total = sum(served_tokens_per_s(both, tenant, to_s=DURATION_S) for tenant in ("light", "heavy"))
    assert total == pytest.approx(served_tokens_per_s(alone, "heavy", to_s=DURATION_S), rel=0.05)


def test_the_queue_never_leaves_a_worker_without_work() -> None:
    run = simulated(HEAVY, spec=msgspec.structs.replace(SPEC, max_waiting=10**6, queue_timeout_s=1e6))
    assert all(ride.outcome is Outcome.FINISHED for ride in run.rides)
    assert run.prefill[0].busy_s >= 0.99 * run.duration_s


def test_who_has_no_place_in_the_queue_and_who_waits_too_long_is_counted() -> None:
    outcomes = report_of(simulated(HEAVY)).outcomes
    patient = report_of(simulated(HEAVY, spec=msgspec.structs.replace(SPEC, max_waiting=10**6))).outcomes
    assert outcomes["overloaded"] > 0
    assert patient["queue_timeout"] > 0
    assert "overloaded" not in patient
