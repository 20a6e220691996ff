"""The less loaded of two workers drawn at random.

Mitzenmacher: "The Power of Two Choices in Randomized Load Balancing" (IEEE TPDS 12, 2001). Routers that see the
same stale loads do not all run to the same worker.
"""

from __future__ import annotations

import xxhash

from baton.fleet import Role
from baton.router.candidates import Candidates
from baton.router.policies.base import SingleRule, describe_load, load_of
from baton.router.snapshot import Demand


class PowerOfTwo(SingleRule):
    def pick(self, workers: Candidates, role: Role, demand: Demand) -> tuple[int, str]:
        number = xxhash.xxh3_64_intdigest(f"{role.value} {demand.ordinal}".encode(), seed=demand.seed)
        count = len(workers)
        first = number % count
        second = (first + 1 + number // count % max(1, count - 1)) % count
        columns = load_of(workers, role)
        best = min(first, second, key=lambda index: [*(column[index] for column in columns), index])
        return best, f"the better of two, {describe_load(workers, best, role)}"
