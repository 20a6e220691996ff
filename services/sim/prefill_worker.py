"""A prefill worker on virtual time: the stations and the token budget of `baton.prefill.scheduler`, with the
profile's seconds in place of a model."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from baton.engine.block_manager import OutOfBlocks
from baton.sim.clock import Clock
from baton.sim.fleet_file import Pool
from baton.sim.ride import Ride
from baton.sim.sim_worker import SimWorker


class PrefillListener(Protocol):
    def scheduled(self, ride: Ride) -> None: ...

    def chunk_computed(self, ride: Ride) -> None: ...


class PrefillWorker(SimWorker):
    def __init__(
        self,
        worker_id: str,
        pool: Pool,
        block_tokens: int,
        clock: Clock,
        chunk_tokens: int,
        listener: PrefillListener,
    ) -> None:
        super().__init__(worker_id, pool, block_tokens, clock)
        self.link_free_at_s = 0.0
        self._chunk_tokens = chunk_tokens
        self._listener = listener
        self._waiting: deque[Ride] = deque()
        self._computing: list[Ride] = []

    def submit(self, ride: Ride) -> None:
        self._waiting.append(ride)
        self._wake()

    def push(self, tokens: int, bytes_per_s: float, bytes_per_token: float) -> None:
        """Queues KV behind what leaves already."""
        start_s = max(self.clock.now_s, self.link_free_at_s)
        self.link_free_at_s = start_s + tokens * bytes_per_token / bytes_per_s

    @property
    def acknowledged_at_s(self) -> float:
        """When all that has been pushed by now will be known to have arrived."""
        return max(self.clock.now_s, self.link_free_at_s) + self.speeds.handoff_latency_s

    def release(self, ride: Ride) -> None:
        """The blocks are acknowledged, or nobody wants them any more."""
        if ride in self._waiting:
            self._waiting.remove(ride)
        if ride in self._computing:
            self._computing.remove(ride)
        self.blocks.release(ride.prefill_blocks)
        ride.prefill_blocks = []
        self._wake()

    def _step(self) -> None:
        self._is_stepping = True
        self._admit()
        chunks = self._plan()
        if not chunks:
            self._is_stepping = False
            return
        duration_s = self.speeds.prefill_pass_s + sum(
            self.speeds.chunk_s(length, ride.computed_tokens) for ride, length in chunks
        )
        self.busy_s += duration_s
        self.clock.after(duration_s, lambda: self._computed(chunks))

    def _admit(self) -> None:
        planned_tokens = sum(ride.request.prompt_tokens - ride.computed_tokens for ride in self._computing)
        while self._waiting and planned_tokens < self._chunk_tokens:
            ride = self._waiting[0]
            request = ride.request
            reusable = (request.prompt_tokens - 1) // self.block_tokens
            held = self.blocks.acquire(request.hashes[:reusable])
            try:
                fresh = self.blocks.allocate(self.blocks_for(request.prompt_tokens) - len(held))
            except OutOfBlocks:
                self.blocks.release(held)
                return
            self._waiting.popleft()
            self._computing.append(ride)
            ride.prefill_blocks = held + fresh
            ride.computed_tokens = ride.cached_tokens = len(held) * self.block_tokens
            planned_tokens += request.prompt_tokens - ride.computed_tokens
            self._listener.scheduled(ride)

    def _plan(self) -> list[tuple[Ride, int]]:
        budget_tokens = self._chunk_tokens
        chunks = []
        for ride in self._computing:
            if budget_tokens == 0:
                break
            length = min(budget_tokens, ride.request.prompt_tokens - ride.computed_tokens)
            chunks.append((ride, length))
            budget_tokens -= length
        return chunks

    def _computed(self, chunks: list[tuple[Ride, int]]) -> None:
        for ride, length in chunks:
            if ride not in self._computing:
                continue  # released while this chunk was computed
            first = ride.computed_tokens // self.block_tokens
            ride.computed_tokens += length
            self.publish(ride.prefill_blocks, ride.request.hashes, ride.computed_tokens, first)
            if ride.is_prompt_computed:
                self._computing.remove(ride)
                self.served_requests += 1
            self._listener.chunk_computed(ride)
        self._step()
