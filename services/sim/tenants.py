"""Workloads of several tenants, and what each of them was served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from baton.sim.generators import BLOCK_TOKENS, length
from baton.sim.ride import Outcome
from baton.sim.simulation import Run
from baton.sim.workload import SimRequest, Workload, hash_of


@dataclass(frozen=True, slots=True)
class TenantLoad:
    """rate_rps: mean of its requests a second, between start_s and stop_s."""

    tenant: str
    rate_rps: float
    start_s: float = 0.0
    stop_s: float = float("inf")


def tenants_workload(
    loads: Sequence[TenantLoad], prompt_median: int, output_median: int, duration_s: float, seed: int
) -> Workload:
    """Prompts that share nothing, of all tenants alike, each tenant's a Poisson process of its own: another tenant
    more changes nothing about what the others send."""
    drawn: list[tuple[float, int, int, str]] = []
    for load in loads:
        random = Random(f"{load.tenant} {seed}")  # noqa: S311
        at_s = load.start_s + random.expovariate(load.rate_rps)
        while at_s < min(load.stop_s, duration_s):
            prompt_tokens = length(random, prompt_median, 32 * prompt_median)
            drawn.append((at_s, prompt_tokens, length(random, output_median, 8 * output_median), load.tenant))
            at_s += random.expovariate(load.rate_rps)
    requests = []
    for number, (at_s, prompt_tokens, output_tokens, tenant) in enumerate(sorted(drawn)):
        hashes = tuple(hash_of(number, block) for block in range(prompt_tokens // BLOCK_TOKENS))
        requests.append(SimRequest(number, at_s, prompt_tokens, output_tokens, hashes, tenant=tenant))
    return Workload("tenants", BLOCK_TOKENS, requests)


def served_tokens_per_s(run: Run, tenant: str, from_s: float = 0.0, *, to_s: float) -> float:
    """Tokens, of prompt and answer, of the tenant's requests that ended well between two moments, a second."""
    ended = [ride for ride in run.rides if ride.outcome is Outcome.FINISHED and ride.request.tenant == tenant]
    tokens = sum(ride.tokens for ride in ended if from_s <= ride.last_token_at_s <= to_s)
    return tokens / (to_s - from_s)
