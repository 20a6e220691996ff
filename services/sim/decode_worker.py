"""A decode worker on virtual time: the stations of `baton.decode.scheduler` and the rules of its batch.

A step costs the same work whatever the size of the batch: a sequence is looked at only when it joins, needs a block
or ends, and these steps are known beforehand.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import deque
from typing import Protocol

from baton.engine.block_manager import OutOfBlocks
from baton.sim.gaps import Gaps
from baton.sim.ride import Ride
from baton.sim.sim_worker import Setup, SimWorker
from baton.sim.spread import drawn_s


class DecodeListener(Protocol):
    def granted(self, ride: Ride) -> None: ...

    def first_token(self, ride: Ride) -> None: ...

    def ended(self, ride: Ride) -> None: ...


_Milestones = list[tuple[int, int, int, Ride]]
"""A heap of (step, the ride's number, its stay, ride); void once the ride is no longer in that stay."""


class DecodeWorker(SimWorker):
    """A ride's stay begins anew each time that it joins the batch."""

    def __init__(self, setup: Setup, gaps: Gaps, listener: DecodeListener) -> None:
        super().__init__(setup)
        self.preemptions = 0
        self._limit = setup.limit
        self._gaps = gaps
        self._listener = listener
        self._asking: deque[Ride] = deque()
        self._receiving: set[Ride] = set()
        self._landed: list[Ride] = []
        self._waiting: list[Ride] = []
        self._prefilling: list[Ride] = []
        self._decoding: dict[Ride, None] = {}
        self._fresh: list[Ride] = []
        self._context_tokens = 0
        self._steps = 0
        self._lacking: _Milestones = []
        self._ending: _Milestones = []

    @property
    def num_running(self) -> int:
        return len(self._prefilling) + len(self._decoding)

    @property
    def num_waiting(self) -> int:
        """Sequences that are to come here and do not run yet."""
        return len(self._asking) + len(self._receiving) + len(self._waiting)

    def ask(self, ride: Ride) -> None:
        self._asking.append(ride)
        self._wake()

    def running(self) -> list[Ride]:
        """Sequences in the batch that get a token with each step."""
        return list(self._decoding)

    def take_over(self, ride: Ride) -> list[int] | None:
        """Blocks for a sequence that runs elsewhere now; None where there is no room. It is to land here."""
        if self.num_running + len(self._receiving) >= self.max_running:
            return None
        blocks = self._promise(ride, ride.tokens - 1, ride.tokens + 1)
        if blocks is not None:
            self._receiving.add(ride)
        return blocks

    def give_up(self, ride: Ride) -> list[int]:
        """Takes a running sequence out of the batch; the blocks that it holds are the caller's now."""
        self._leave(ride)
        return ride.decode_blocks

    def land(self, ride: Ride) -> None:
        """Blocks and first token are here."""
        self.publish(ride.decode_blocks, ride.request.hashes, ride.request.prompt_tokens, 0)
        self._landed.append(ride)
        self._wake()

    def release(self, ride: Ride) -> None:
        """Of a ride that is not in the batch: its memory and its place."""
        if ride in self._asking:
            self._asking.remove(ride)
        if ride in self._waiting:
            self._waiting.remove(ride)
        self._receiving.discard(ride)
        self._free(ride)
        self._wake()

    def _step(self) -> None:
        self._is_stepping = True
        self._take_landed()
        self._grant()
        self._readmit()
        self._make_room()
        chunks = self._plan()
        if not chunks and not self._decoding:
            self._is_stepping = False
            return
        speeds = self.speeds
        usual_s = sum(speeds.chunk_s(length, ride.computed_tokens) for ride, length in chunks)
        running = len(self._decoding)
        usual_s += speeds.step_s(running, self._context_tokens) if running else speeds.prefill_pass_s
        duration_s = drawn_s(usual_s, speeds.step_spread, self.random)
        self.busy_s += duration_s
        self.clock.after(duration_s, lambda: self._computed(duration_s, chunks))

    def _take_landed(self) -> None:
        """Into the batch, between two steps."""
        for ride in self._landed:
            self._receiving.remove(ride)
            self.blocks.unmark_reserved(ride.reserved_blocks)
            ride.reserved_blocks = []
            self._join(ride)
        self._landed = []

    def _grant(self) -> None:
        while self._asking and not self._waiting:
            if self.num_running + len(self._receiving) >= self.max_running:
                return
            ride = self._asking[0]
            if ride.prefill is None:
                self._asking.popleft()
                ride.is_granted = True
                insort(self._waiting, ride, key=lambda waiting: waiting.age)
                continue
            blocks = self._promise(ride, ride.request.prompt_tokens, ride.request.prompt_tokens)
            if blocks is None:
                return
            self._asking.popleft()
            ride.decode_blocks = blocks
            ride.pushed_tokens = (len(blocks) - len(ride.reserved_blocks)) * self.block_tokens
            ride.is_granted = True
            self._receiving.add(ride)
            self._listener.granted(ride)

    def _promise(self, ride: Ride, reusable_tokens: int, tokens: int) -> list[int] | None:
        """What is cached, and reserved the blocks that `tokens` lack beyond it; None where that would not leave
        each running sequence one."""
        held = self.blocks.acquire(ride.request.hashes[: reusable_tokens // self.block_tokens])
        missing = self.blocks_for(tokens) - len(held)
        if missing + self.num_running > self.blocks.available:
            self.blocks.release(held)
            return None
        ride.reserved_blocks = self.blocks.allocate(missing)
        self.blocks.mark_reserved(ride.reserved_blocks)
        return held + ride.reserved_blocks

    def _readmit(self) -> None:
        while self._waiting and self.num_running < self.max_running:
            ride = self._waiting[0]
            held = self.blocks.acquire(ride.request.hashes[: (ride.tokens - 1) // self.block_tokens])
            missing = self.blocks_for(ride.tokens) - len(held)
            if missing + self.num_running > self.blocks.available:
                self.blocks.release(held)
                return
            del self._waiting[0]
            ride.decode_blocks = held + self.blocks.allocate(missing)
            ride.computed_tokens = len(held) * self.block_tokens
            if not ride.output_tokens:
                ride.cached_tokens = ride.computed_tokens
            self._prefilling.append(ride)

    def _make_room(self) -> None:
        """Gives each sequence the block for its next token, preempting the youngest where none is left."""
        while self._lacking and self._lacking[0][0] <= self._steps:
            _, _, stay, ride = heapq.heappop(self._lacking)
            while ride in self._decoding and ride.stay == stay:
                try:
                    ride.decode_blocks += self.blocks.allocate(1)
                except OutOfBlocks:
                    self._preempt(max([*self._decoding, *self._prefilling], key=lambda running: running.age))
                else:
                    self._note_lacking(ride)
                    break

    def _preempt(self, ride: Ride) -> None:
        if ride in self._decoding:
            self._leave(ride)
        else:
            self._prefilling.remove(ride)
        self._free(ride)
        insort(self._waiting, ride, key=lambda waiting: waiting.age)
        self.preemptions += 1

    def _plan(self) -> list[tuple[Ride, int]]:
        chunks: list[tuple[Ride, int]] = []
        if not self._prefilling:
            return chunks
        room = self._limit.room()
        for ride in self._prefilling:
            length = room.fits(ride.tokens - ride.computed_tokens, ride.computed_tokens)
            room.take(length, ride.computed_tokens)
            if length:
                chunks.append((ride, length))
        return chunks

    def _computed(self, duration_s: float, chunks: list[tuple[Ride, int]]) -> None:
        self._steps += 1
        self._context_tokens += len(self._decoding)
        self._gaps.add(duration_s, len(self._decoding) - len(self._fresh))
        for ride in self._fresh:
            self._gaps.add(self.clock.now_s - ride.last_token_at_s, 1)
        self._fresh = []
        self._end_due()
        for ride, length in chunks:
            self._chunk_computed(ride, length)
        self._step()

    def _end_due(self) -> None:
        while self._ending and self._ending[0][0] <= self._steps:
            _, _, stay, ride = heapq.heappop(self._ending)
            if ride in self._decoding and ride.stay == stay:
                self._leave(ride)
                self._end(ride)

    def _chunk_computed(self, ride: Ride, length: int) -> None:
        """The last chunk of a prompt, or of a preempted sequence, gives a token."""
        first = ride.computed_tokens // self.block_tokens
        ride.computed_tokens += length
        self.publish(ride.decode_blocks, ride.request.hashes, ride.computed_tokens, first)
        if ride.computed_tokens < ride.tokens:
            return
        self._prefilling.remove(ride)
        if ride.output_tokens:
            self._gaps.add(self.clock.now_s - ride.last_token_at_s, 1)
        ride.output_tokens += 1
        ride.last_token_at_s = self.clock.now_s
        if ride.output_tokens == 1:
            self._listener.first_token(ride)
        if ride.output_tokens == ride.request.output_tokens:
            self._end(ride)
        else:
            self._join(ride)

    def _join(self, ride: Ride) -> None:
        ride.stay += 1
        self._decoding[ride] = None
        self._fresh.append(ride)
        self._context_tokens += ride.tokens
        ride.joined_at_step = self._steps
        left = ride.request.output_tokens - ride.output_tokens
        heapq.heappush(self._ending, (ride.joined_at_step + left, ride.number, ride.stay, ride))
        self._note_lacking(ride)

    def _note_lacking(self, ride: Ride) -> None:
        """`ride` lacks a block in the step whose token has no slot any more."""
        slots = len(ride.decode_blocks) * self.block_tokens
        step = ride.joined_at_step + slots - ride.tokens + 1
        heapq.heappush(self._lacking, (step, ride.number, ride.stay, ride))

    def _leave(self, ride: Ride) -> None:
        """Settles what `ride` gained in the batch."""
        gained = self._steps - ride.joined_at_step
        self._context_tokens -= ride.tokens + gained
        ride.output_tokens += gained
        if gained:
            ride.last_token_at_s = self.clock.now_s
        if ride in self._fresh:
            self._fresh.remove(ride)
        del self._decoding[ride]

    def _end(self, ride: Ride) -> None:
        """Its last token has no KV; the blocks filled by the others stay cached."""
        self.publish(ride.decode_blocks, ride.request.hashes, ride.tokens - 1, 0)
        self._free(ride)
        self.served_requests += 1
        self._listener.ended(ride)

    def _free(self, ride: Ride) -> None:
        self.blocks.release(ride.decode_blocks)  # nobody shares what is reserved: that frees it as well
        ride.decode_blocks, ride.reserved_blocks = [], []
