"""The simulated fleet and traffic on which changing roles is judged, and the best that splits without it can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from baton.fleet import Role
from baton.router.planner.rules import PlannerRules
from baton.sim.fleet_file import ElasticSpec, FleetSpec, Objectives, Pool, read_profile
from baton.sim.generators import BLOCK_TOKENS, generate
from baton.sim.report import meets_objectives
from baton.sim.ride import Ride
from baton.sim.simulation import Run, Simulation
from baton.sim.workload import SimRequest, Workload

OBJECTIVES = Objectives(ttft=2.0, tpot=0.1)
PROMPT_RPS, OUTPUT_RPS = 0.75, 2.25
"""Requests a second and worker: each takes about two thirds of what the best split bears."""
PROMPT_HEAVY, OUTPUT_HEAVY, TURNING = "prompt-heavy", "output-heavy", "turning"
_PROFILE = "h100-80g-llama-70b"
_TRIED_SPLITS = 8
_CHUNK_TOKENS, _MAX_RUNNING, _MAX_REQUESTS, _QUEUE_TIMEOUT_S, _LOCAL_TOKENS = 8192, 256, 100_000, 60.0, 64


@dataclass(frozen=True, slots=True)
class Setting:
    """phase_s: of each of three phases. rate: multiplies those of the workloads."""

    workers: int
    phase_s: float
    seed: int
    rate: float = 1.0

    def phase(self, kind: str, number: int) -> Workload:
        rate_rps = self.rate * self.workers * (PROMPT_RPS if kind == PROMPT_HEAVY else OUTPUT_RPS)
        drawn = generate(kind, int(1.2 * rate_rps * self.phase_s), rate_rps, self.seed + number)
        return replace(drawn, requests=[r for r in drawn.requests if r.arrival_s < self.phase_s])

    def phases(self) -> list[Workload]:
        kinds = (PROMPT_HEAVY, OUTPUT_HEAVY, PROMPT_HEAVY)
        return [self.phase(kind, number) for number, kind in enumerate(kinds)]

    def fleet(self, prefill: int, rules: PlannerRules | None) -> FleetSpec:
        hardware = read_profile(_PROFILE, Path())
        pools = (
            Pool("p", Role.PREFILL, prefill, hardware, hardware.cost_per_hour),
            Pool("d", Role.DECODE, self.workers - prefill, hardware, hardware.cost_per_hour),
        )
        return FleetSpec(
            pools,
            OBJECTIVES,
            _CHUNK_TOKENS,
            _MAX_RUNNING,
            _MAX_REQUESTS,
            _QUEUE_TIMEOUT_S,
            _LOCAL_TOKENS,
            elastic=None if rules is None else ElasticSpec(rules),
        )

    def splits(self, likely: float) -> list[int]:
        """Numbers of prefill workers, those first that are nearest to the share `likely` of all."""
        step = max(1, self.workers // _TRIED_SPLITS)
        counts = range(step, self.workers, step)
        return sorted(counts, key=lambda prefill: abs(prefill - likely * self.workers))


def joined(phases: list[Workload], phase_s: float) -> Workload:
    """One phase after the other; equal hashes in two of them do not mean equal prompts."""
    requests: list[SimRequest] = []
    for number, phase in enumerate(phases):
        for request in phase.requests:
            hashes = tuple(block[:7] + bytes([number]) + block[8:] for block in request.hashes)
            at_s = number * phase_s + request.arrival_s
            requests.append(replace(request, number=len(requests), arrival_s=at_s, hashes=hashes))
    return Workload(TURNING, BLOCK_TOKENS, requests)


def good(run: Run) -> int:
    return sum(meets_objectives(run.spec.objectives, ride) for ride in run.rides)


@dataclass(frozen=True, slots=True, order=True)
class Split:
    """How well one did. haste_s: minus what all requests together took, so that of equals the sooner is greater."""

    good: int
    haste_s: float
    prefill: int


class _BeatenError(Exception):
    """More requests have missed their objectives than with another split by the end."""


def best_split(
    setting: Setting, traffic: Workload, splits: Sequence[int], on_tried: Callable[[], None]
) -> Split:
    """For all of `traffic`. Exact, and quick where `splits` begins with the likely ones: a run ends as soon as it
    is certain not to be the best."""
    best: Split | None = None
    for prefill in splits:
        tried = _try(setting.fleet(prefill, None), traffic, prefill, 0 if best is None else best.good)
        best = max((split for split in (best, tried) if split is not None), default=None)
        on_tried()
    assert best is not None, "the first is beaten by none"
    return best


def _try(fleet: FleetSpec, traffic: Workload, prefill: int, good_at_least: int) -> Split | None:
    may_miss = len(traffic.requests) - good_at_least
    missed = 0

    def ended(ride: Ride) -> None:
        nonlocal missed
        missed += not meets_objectives(fleet.objectives, ride)
        if missed > may_miss:
            raise _BeatenError

    try:
        run = Simulation(fleet, traffic, on_ended=ended).run()
    except _BeatenError:
        return None
    haste_s = sum(ride.arrived_at_s - ride.last_token_at_s for ride in run.rides)
    return Split(good(run), haste_s, prefill)
