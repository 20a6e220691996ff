"""A simulated fleet of small workers, and traffic for it that turns at even intervals."""

from __future__ import annotations

from baton.fleet import Role
from baton.router.planner.rules import PlannerRules
from baton.router.snapshot import Disaggregation
from baton.sim.fleet_file import ElasticSpec, FleetSpec, HardwareProfile, Objectives, Pool
from baton.sim.workload import SimRequest, Workload, hash_of

BLOCK = 16
HARDWARE = HardwareProfile(
    prefill_tokens_per_s=4000.0,
    decode_step_s=0.02,
    copy_bytes_per_s=1e8,
    kv_bytes_per_token=1000.0,
    kv_tokens=100_000,
    decode_s_per_sequence=0.001,
)
RULES = PlannerRules(ttft_s=2.0, tpot_s=0.06, cooldown_s=30.0)
PHASE_S = 60.0


def fleet(prefill: int, decode: int, rules: PlannerRules | None = RULES) -> FleetSpec:
    pools = (
        Pool("p", Role.PREFILL, prefill, HARDWARE, 1.0),
        Pool("d", Role.DECODE, decode, HARDWARE, 1.0),
    )
    elastic = None if rules is None else ElasticSpec(rules)
    limits = Objectives(2.0, 0.06), 1024, 64, 10_000, 60.0, 0
    return FleetSpec(pools, *limits, elastic, disaggregation=Disaggregation.ALWAYS)


def steps(*phases: tuple[float, int, int]) -> Workload:
    """Requests at an even pace: for each phase requests/s, prompt tokens and output tokens."""
    requests: list[SimRequest] = []
    for number, (rate_rps, prompt, output) in enumerate(phases):
        for nth in range(int(rate_rps * PHASE_S)):
            stream = len(requests)
            hashes = tuple(hash_of(stream, block) for block in range((prompt + output - 1) // BLOCK))
            at_s = number * PHASE_S + nth / rate_rps
            requests.append(SimRequest(stream, at_s, prompt, output, hashes))
    return Workload("steps", BLOCK, requests)
