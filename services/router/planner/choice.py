"""Which worker of a pool goes, where one has to: each kind of hardware is for what it is good at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from baton.fleet import Role
from baton.router.planner.history import WorkerStatus
from baton.router.planner.load import Capacity

_KV_WEIGHT = 0.25
"""A worker whose pool is full goes as readily as one that is so much, relatively, worse suited and empty."""


def in_order_of_fitness(
    candidates: Sequence[WorkerStatus], role: Role, capacity: Mapping[str, Capacity]
) -> list[WorkerStatus]:
    """The best for `role` first: compute-rich workers for prefill, bandwidth-rich ones for decode, less the KV, in
    use or cached, that is not there for its pool any more."""

    def fitness(worker: WorkerStatus) -> tuple[float, str]:
        own = capacity[worker.worker_id]
        for_decode = math.log(own.decode_tokens_per_s / own.prefill_tokens_per_s)
        gain = for_decode if role is Role.DECODE else -for_decode
        return gain - _KV_WEIGHT * _kv_share(worker), worker.worker_id

    return sorted(candidates, key=fitness, reverse=True)


def _kv_share(worker: WorkerStatus) -> float:
    return (worker.held_tokens + worker.cached_tokens) / worker.kv_tokens if worker.kv_tokens else 0.0
