"""A prefill worker on virtual time: the stations and the very queue of `baton.prefill.scheduler`, with the
profile's seconds in place of a model."""

from __future__ import annotations

from typing import Protocol

from baton.engine.block_manager import OutOfBlocks
from baton.engine.prompt_queue import PromptQueue
from baton.sim.ride import Ride
from baton.sim.sim_worker import Setup, SimWorker
from baton.sim.spread import drawn_s


class PrefillListener(Protocol):
    def scheduled(self, ride: Ride) -> None: ...

    def chunk_computed(self, ride: Ride) -> None: ...


class PrefillWorker(SimWorker):
    def __init__(self, setup: Setup, listener: PrefillListener) -> None:
        super().__init__(setup)
        self.link_free_at_s = 0.0
        self._listener = listener
        self._queue = PromptQueue[Ride](setup.limit)

    def submit(self, ride: Ride) -> None:
        ride.queued_at_s = self.clock.now_s
        ride.expected_cached_tokens = self.blocks.match(self._reusable(ride)) * self.block_tokens
        self._queue.add(ride)
        self._wake()

    def waiting(self) -> list[Ride]:
        """Whose turn has not come, in order of arrival: they hold nothing on either side."""
        return [ride for ride in self._queue if not ride.prefill_blocks]

    def push(self, tokens: int, bytes_per_s: float, bytes_per_token: float) -> None:
        """Queues KV behind what leaves already."""
        start_s = max(self.clock.now_s, self.link_free_at_s)
        self.link_free_at_s = start_s + tokens * bytes_per_token / bytes_per_s

    def acknowledge_at_s(self) -> float:
        """When all that has been pushed by now will be known to have arrived."""
        latency_s = drawn_s(self.speeds.handoff_latency_s, self.speeds.handoff_spread, self.random)
        return max(self.clock.now_s, self.link_free_at_s) + latency_s

    def release(self, ride: Ride) -> None:
        """The blocks are acknowledged, or nobody wants them any more."""
        self._queue.remove(ride)
        self.blocks.release(ride.prefill_blocks)
        ride.prefill_blocks = []
        self._wake()

    def _step(self) -> None:
        self._is_stepping = True
        chunks = self._queue.plan(self._admit)
        if not chunks:
            self._is_stepping = False
            return
        computed_s = sum(self.speeds.chunk_s(length, ride.computed_tokens) for ride, length in chunks)
        usual_s = self.speeds.prefill_pass_s + computed_s
        duration_s = drawn_s(usual_s, self.speeds.step_spread, self.random)
        self.busy_s += duration_s
        self.clock.after(duration_s, lambda: self._computed(chunks))

    def _admit(self, ride: Ride) -> bool:
        held = self.blocks.acquire(self._reusable(ride))
        try:
            fresh = self.blocks.allocate(self.blocks_for(ride.request.prompt_tokens) - len(held))
        except OutOfBlocks:
            self.blocks.release(held)
            return False
        ride.prefill_blocks = held + fresh
        ride.computed_tokens = ride.cached_tokens = ride.expected_cached_tokens = (
            len(held) * self.block_tokens
        )
        self._listener.scheduled(ride)
        return True

    def _reusable(self, ride: Ride) -> tuple[bytes, ...]:
        """The last token always is computed, for its logits."""
        return ride.request.hashes[: (ride.request.prompt_tokens - 1) // self.block_tokens]

    def _computed(self, chunks: list[tuple[Ride, int]]) -> None:
        for ride, length in chunks:
            if ride not in self._queue:
                continue  # released while this chunk was computed
            first = ride.computed_tokens // self.block_tokens
            ride.computed_tokens += length
            self.publish(ride.prefill_blocks, ride.request.hashes, ride.computed_tokens, first)
            if ride.is_prompt_computed:
                self._queue.remove(ride)
                self.served_requests += 1
            self._listener.chunk_computed(ride)
        self._step()
