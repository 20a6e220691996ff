"""The less loaded of two workers drawn at random.

Mitzenmacher: "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 12, 2001). Routers that see the
same stale loads do not all run to the same worker.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from baton.fleet import Role
from baton.router.policies.base import SingleRule, describe_load, load_of
from baton.router.snapshot import Candidate, Demand


class PowerOfTwo(SingleRule):
    def pick(self, candidates: Sequence[Candidate], role: Role, demand: Demand) -> tuple[Candidate, str]:
        in_order = sorted(candidates, key=lambda candidate: candidate.worker_id)
        number = xxhash.xxh3_64_intdigest(f"{role.value} {demand.ordinal}".encode(), seed=demand.seed)
        first = in_order.pop(number % len(in_order))
        drawn = (first, in_order[number // (len(in_order) + 1) % len(in_order)] if in_order else first)
        best = min(drawn, key=lambda candidate: load_of(candidate, role))
        return best, f"the better of two, {describe_load(best, role)}"
