"""Shares of tenants under overload, on a simulated fleet that runs the router's own admission and prefill queue.

Nothing is timed: the figures are of a virtual clock, the same on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rows import Row, table, write_json

from baton.fleet import Role
from baton.sim.fleet_file import FleetSpec, Objectives, Pool, read_profile
from baton.sim.ride import Outcome
from baton.sim.simulation import Run, Simulation
from baton.sim.tenants import TenantLoad, served_tokens_per_s, tenants_workload

_PROFILE = "h100-80g-llama-8b"
_HEAVY, _OVER, _WITHIN = 10.0, 1.0, 0.3
"""What tenants send, in multiples of what the fleet serves: one that floods it, one that wants more than half of
it, one that wants less."""

_SHARE_TARGET = 0.95
_SPARE_TARGET = 0.98


def main(
    json: Annotated[Path | None, typer.Option(help="Write the figures there too.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A minute of traffic instead of five.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed, the same figures.")] = 0,
) -> None:
    """Example: python benchmarks/fairness.py --quick"""
    duration_s = 60.0 if quick else 300.0
    console = Console()
    with console.status("simulating"):
        rows = measure(duration_s, seed)
    console.print(table(rows, f"Two tenants, {duration_s:.0f} s"))
    if json is not None:
        write_json(rows, json)


def measure(duration_s: float, seed: int) -> list[Row]:
    """The heavy tenant alone, beside one that wants more than its share as well, and beside one that does not."""
    fleet_rps = _capacity_rps()
    heavy = TenantLoad("heavy", _HEAVY * fleet_rps)
    over, within = (TenantLoad("light", factor * fleet_rps) for factor in (_OVER, _WITHIN))
    alone = _simulated([heavy], duration_s, seed)
    both = _simulated([over, heavy], duration_s, seed)
    beside = _simulated([within, heavy], duration_s, seed)
    from_s = duration_s / 4
    served = {
        name: served_tokens_per_s(run, tenant, from_s, to_s=duration_s)
        for name, run, tenant in (
            ("alone", alone, "heavy"),
            ("light", both, "light"),
            ("heavy", both, "heavy"),
            ("within", beside, "light"),
            ("rest", beside, "heavy"),
        )
    }
    return [
        Row(
            name="share, beside one that sends 10 times as much",
            value=served["light"],
            unit="tokens/s",
            peer="the other",
            peer_value=served["heavy"],
            ratio=served["light"] / served["heavy"],
            target=_SHARE_TARGET,
        ),
        Row(
            name="served to all, one within its share",
            value=served["within"] + served["rest"],
            unit="tokens/s",
            peer="one alone",
            peer_value=served["alone"],
            ratio=(served["within"] + served["rest"]) / served["alone"],
            target=_SPARE_TARGET,
        ),
        Row(
            name="finished of who is within its share",
            value=100 * _finished_share(beside, "light"),
            unit="%",
            target=100.0,
        ),
    ]


def _fleet() -> FleetSpec:
    hardware = read_profile(_PROFILE, Path())
    pools = tuple(Pool(role.value, role, 2, hardware, 0.0) for role in (Role.PREFILL, Role.DECODE))
    return FleetSpec(
        pools=pools,
        objectives=Objectives(),
        chunk_tokens=8192,
        max_running=256,
        max_requests=1024,
        queue_timeout_s=60.0,
        local_prefill_tokens=64,
    )


_PROMPT_MEDIAN, _OUTPUT_MEDIAN = 4000, 100


def _capacity_rps() -> float:
    """About what the prefill workers can take."""
    fleet = _fleet()
    prefill = next(pool for pool in fleet.pools if pool.role is Role.PREFILL)
    return prefill.workers / prefill.hardware.speeds().prefill_s(_PROMPT_MEDIAN, 0)


def _simulated(loads: list[TenantLoad], duration_s: float, seed: int) -> Run:
    return Simulation(
        _fleet(), tenants_workload(loads, _PROMPT_MEDIAN, _OUTPUT_MEDIAN, duration_s, seed)
    ).run()


def _finished_share(run: Run, tenant: str) -> float:
    rides = [ride for ride in run.rides if ride.request.tenant == tenant]
    return sum(ride.outcome is Outcome.FINISHED for ride in rides) / len(rides)


if __name__ == "__main__":
    typer.run(main)
