"""How long a placement takes at a router that knows many workers: writing what has changed, and what the prompt
finds cached, into the columns; then the decision."""

from __future__ import annotations

import gc
import time
from random import Random

import numpy as np
import numpy.typing as npt

from baton.block_hash import HASH_BYTES
from baton.fleet import Role, WorkerProfile
from baton.router.candidates import Candidate
from baton.router.fleet_columns import FleetColumns
from baton.router.placement import place
from baton.router.policies import load_policy
from baton.router.prefix_index import PrefixIndex
from baton.router.snapshot import Demand

BLOCK_TOKENS = 16
PROMPT_BLOCKS = 512
PROMPTS = 64
HOLDERS = 3
PROFILE = WorkerProfile(30_800, 0.008, 35e9, 1.06e-9, 3.25e-5, 6.5e-8)


class Fleet:
    """Half prefill, half decode workers with random loads; each prompt's beginning lies on three of them."""

    def __init__(self, workers: int) -> None:
        self._random = Random(workers)
        self._index = PrefixIndex()
        self._ids = [f"{'prefill' if n % 2 else 'decode'}-{n}" for n in range(workers)]
        pools = {role: [self._worker(i) for i in self._ids if i.startswith(role.value)] for role in Role}
        self._columns = FleetColumns(pools, self._index.slot)
        self._prompts = [self._random.randbytes(PROMPT_BLOCKS * HASH_BYTES) for _ in range(PROMPTS)]
        for prompt in self._prompts:
            for worker_id in self._random.sample(self._ids, HOLDERS):
                self._index.store(worker_id, prompt[: self._random.randint(1, PROMPT_BLOCKS) * HASH_BYTES])
        self._policy = load_policy("predicted")

    def placements_s(self, count: int, tpot_s: float | None = None) -> npt.NDArray[np.float64]:
        """(2, count), wall-clock and thread seconds of `count` placements of requests with this objective; between
        two of them a worker's load changes. The array is touched beforehand: were it to grow, the page faults would
        be what the slowest placements of a process's first series are slow by."""
        seconds = np.ones((2, count))
        gc.collect()
        gc.freeze()
        for number in range(count):
            changed, prompt = self._worker(self._random.choice(self._ids)), self._random.choice(self._prompts)
            session = f"session-{number}" if number % 2 else None
            wall_ns, thread_ns = time.perf_counter_ns(), time.thread_time_ns()
            self._columns.write(changed)
            self._place(prompt, session, number, tpot_s)
            seconds[1, number] = time.thread_time_ns() - thread_ns
            seconds[0, number] = time.perf_counter_ns() - wall_ns
        gc.unfreeze()
        return seconds / 1e9

    def _place(self, prompt: bytes, session: str | None, number: int, tpot_s: float | None) -> None:
        matched_tokens = self._index.match_all(prompt) * BLOCK_TOKENS
        snapshot = self._columns.snapshot(matched_tokens, number * 0.001)
        tokens = PROMPT_BLOCKS * BLOCK_TOKENS
        demand = Demand(tokens, PROMPT_BLOCKS, session_key=session, tpot_s=tpot_s, ordinal=number)
        place(snapshot, demand, self._policy)

    def _worker(self, worker_id: str) -> Candidate:
        draw = self._random.randint
        return Candidate(
            worker_id,
            queued_tokens=draw(0, 20_000),
            queued_s=draw(0, 600) / 1000,
            sequences=draw(0, 60),
            context_tokens=draw(0, 300_000),
            available_blocks=draw(0, 20_000),
            kv_bytes_per_token=131_072.0,
            block_tokens=BLOCK_TOKENS,
            profile=PROFILE,
        )
