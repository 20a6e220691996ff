"""What simulated workers of both roles have: a pool under the real block manager, the router's own account of what
it sent here, and busy time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from random import Random

from baton.engine.block_manager import BlockManager
from baton.engine.step_room import ChunkLimit
from baton.router.candidates import Candidate
from baton.router.prediction import Prediction
from baton.sim.clock import Clock
from baton.sim.fleet_file import Pool
from baton.sim.pool_events import PoolEvents
from baton.sim.ride import Ride


@dataclass(frozen=True, slots=True)
class Setup:
    """What a simulated worker is made from, in either role. block_tokens: of its blocks. max_running: sequences in
    its batch at most where it decodes. limit: of a step's prompts."""

    worker_id: str
    pool: Pool
    block_tokens: int
    clock: Clock
    max_running: int
    limit: ChunkLimit
    seed: int


class SimWorker(ABC):
    """queued_tokens, queued_s, leased_sequences, queued_sequences, leased_context_tokens: as
    `baton.router.lease.Tracked` counts them. is_open: False once it is to leave its pool; it gets nothing new then.
    random: what its steps draw from."""

    def __init__(self, setup: Setup) -> None:
        self.worker_id = setup.worker_id
        self.pool = setup.pool
        self.clock = setup.clock
        self.block_tokens = setup.block_tokens
        self.max_running = setup.max_running
        self.speeds = setup.limit.told_with(setup.pool.hardware.speeds())
        self.events = PoolEvents(setup.worker_id)
        num_blocks = max(1, setup.pool.hardware.kv_tokens // setup.block_tokens)
        self.blocks = BlockManager(num_blocks, setup.block_tokens)
        self.blocks.listen(self.events)
        self.queued_tokens = 0
        self.queued_s = 0.0
        self.leased_sequences = 0
        self.queued_sequences = 0
        self.leased_context_tokens = 0
        self.busy_s = 0.0
        self.served_requests = 0
        self.is_open = True
        self._is_stepping = False
        self.random = Random(f"{setup.seed} {setup.worker_id}")  # noqa: S311

    @abstractmethod
    def _step(self) -> None:
        """Takes the next step, if there is work; `_is_stepping` until it is over."""

    def go_on_from(self, former: SimWorker) -> None:
        """The same worker in another role: with the KV pool that it has, those who follow what is cached there, and
        its luck where that stood."""
        self.blocks, self.events, self.random = former.blocks, former.events, former.random

    def _wake(self) -> None:
        """There may be work."""
        if not self._is_stepping:
            self._step()

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def candidate(self) -> Candidate:
        available = self.blocks.available
        held_tokens = (self.blocks.num_blocks - available) * self.block_tokens
        return Candidate(
            self.worker_id,
            queued_tokens=self.queued_tokens,
            queued_s=self.queued_s,
            sequences=self.leased_sequences,
            context_tokens=max(held_tokens, self.leased_context_tokens),
            available_blocks=available,
            queued_sequences=self.queued_sequences,
            kv_bytes_per_token=self.pool.hardware.kv_bytes_per_token,
            max_running=self.max_running,
            profile=self.speeds,
        )

    def lease(self, prediction: Prediction) -> None:
        self.queued_tokens += prediction.prefill_tokens
        self.queued_s += prediction.prefill_s

    def lease_sequence(self, ride: Ride) -> None:
        self.leased_sequences += 1
        self.queued_sequences += ride.is_queued
        self.leased_context_tokens += ride.request.prompt_tokens

    def end_sequence(self, ride: Ride) -> None:
        self.leased_sequences -= 1
        self.queued_sequences -= ride.is_queued
        self.leased_context_tokens -= ride.request.prompt_tokens

    def prompt_scheduled(self, ride: Ride) -> None:
        self.queued_sequences -= ride.is_queued
        ride.is_scheduled = True

    def prefill_done(self, prediction: Prediction) -> None:
        self.queued_tokens -= prediction.prefill_tokens
        self.queued_s = self.queued_s - prediction.prefill_s if self.queued_tokens else 0.0

    def publish(
        self, block_ids: list[int], hashes: tuple[bytes, ...], computed_tokens: int, first: int
    ) -> int:
        """Makes full blocks from position `first` on reusable; returns how many are now."""
        full = max(first, min(computed_tokens // self.block_tokens, len(hashes), len(block_ids)))
        for position in range(first, full):
            self.blocks.publish(block_ids[position], hashes[position])
        return full
