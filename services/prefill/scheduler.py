"""Which prompt is computed next, and which of its blocks leave when.

Stations of a prompt, all on the engine's thread:

    submit -> waiting (bounded; `baton.engine.prompt_queue` has the rules of the order)
           -> computing (holds blocks; full ones leave as soon as a ticket is attached)
           -> computed (first tokens are out; the rest of its blocks leave)
           -> acknowledged by the decode worker: released

Cancel, deadline and a failed push strike anywhere and release at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from baton.engine.batch import Chunk
from baton.engine.block_manager import OutOfBlocks
from baton.engine.engine import Engine
from baton.engine.memory import StepOutOfMemory
from baton.engine.prompt_queue import PromptQueue
from baton.engine.sampler import NonFiniteLogits
from baton.engine.step_room import ChunkLimit
from baton.errors import BatonError, DeadlineExceeded, HandoffFailed, InvalidRequest, Overloaded, Unavailable
from baton.fleet import HandoffTotals, WorkerLoad, WorkerProfile
from baton.kvtransfer.base import SendSession, TransferResult, TransferState
from baton.kvtransfer.group import Handoffs
from baton.prefill.prompt import Prompt, Tail
from baton.request import TokenOutput


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """chunk_tokens, chunk_s: what a step computes at most, as `ChunkLimit` has them; the unit of cancellation.
    max_waiting: prompts queued."""

    chunk_tokens: int = 512
    max_waiting: int = 1024
    chunk_s: float | None = None


class PrefillScheduler:
    """Implements `baton.engine.loop.Scheduler`."""

    def __init__(
        self,
        engine: Engine,
        agent: Handoffs,
        limits: PrefillLimits,
        on_tail: Callable[[Tail], None] = lambda tail: None,
        speeds: Callable[[], WorkerProfile] = WorkerProfile,
    ) -> None:
        """on_tail: hears of each hand-off's tail once it is acknowledged, on the engine's thread. speeds: of this
        worker, by which a step's time is limited."""
        self._on_tail = on_tail
        self._engine = engine
        self._agent = agent
        self._limits = limits
        self._queue = PromptQueue[Prompt](ChunkLimit(limits.chunk_tokens, limits.chunk_s, speeds))
        self._prompts: dict[str, Prompt] = {}
        self._handoffs = HandoffTotals()
        self._load = self._measure_load()

    def submit(self, prompt: Prompt) -> None:
        refusal = self._refusal(prompt)
        if refusal is not None:
            prompt.listener.on_failed(refusal)
            return
        self._prompts[prompt.request.request_id] = prompt
        prompt.expected_cached_tokens = self._engine.cached_tokens(prompt.sequence)
        self._queue.add(prompt)

    def attach(self, prompt: Prompt, session: SendSession) -> None:
        """Gives a prompt the session to its decode worker; what is computed already leaves now."""
        if not self._holds(prompt):
            session.fence("the prompt is no longer here")
            return
        prompt.session = session
        self._push(prompt)

    def transfer_ended(self, prompt: Prompt, result: TransferResult) -> None:
        if not self._holds(prompt):
            return
        if result.state is TransferState.FAILED:
            self._fail(prompt, HandoffFailed(f"request {prompt.request.request_id}: {result.error}"))
            return
        prompt.result = result
        self._finish_if_done(prompt)

    def cancel(self, prompt: Prompt) -> None:
        """Ends a prompt wherever it is; one that has ended already is left alone."""
        if self._holds(prompt):
            self._release(prompt, "cancelled")

    def step(self) -> bool:
        self._expire()
        chunks = [_chunk(prompt, length) for prompt, length in self._queue.plan(self._admit)]
        if chunks:
            self._compute(chunks)
        self._load = self._measure_load()
        return bool(chunks)

    def _compute(self, chunks: list[Chunk]) -> None:
        try:
            outputs = self._engine.run(chunks)
        except NonFiniteLogits as error:
            self._engine.blocks.clear_cache()  # whatever made them may be in blocks that others would reuse
            self._fail(self._prompts[error.request_id], error)
            return
        except StepOutOfMemory as error:  # without one of them the others may fit
            self._fail(self._prompts[chunks[-1].sequence.request_id], error)
            return
        for prompt in self._queue.admitted:
            if prompt.sequence.computed_tokens == prompt.tokens:
                self._first_tokens(
                    prompt, [o for s, o in outputs if s.request_id == prompt.request.request_id]
                )
            else:
                self._push(prompt)

    def next_deadline_s(self) -> float | None:
        return min((prompt.deadline_s for prompt in self._prompts.values()), default=None)

    def close(self) -> None:
        for prompt in list(self._prompts.values()):
            self._fail(prompt, Unavailable("the prefill worker is stopping"))

    def load(self) -> WorkerLoad:
        """As of the end of the last step; callable from any thread."""
        return self._load

    def _measure_load(self) -> WorkerLoad:
        prompts = self._prompts.values()
        stats = self._agent.stats()
        waiting = self._queue.waiting
        return WorkerLoad(
            running=len(prompts) - waiting,
            waiting=waiting,
            queued_tokens=sum(max(0, p.tokens - p.sequence.computed_tokens) for p in prompts),
            kv_blocks=self._engine.blocks.usage(),
            kv_bytes_sent=stats.bytes_sent,
            kv_bytes_received=stats.bytes_received,
            handoffs=self._handoffs,
        )

    def _holds(self, prompt: Prompt) -> bool:
        return self._prompts.get(prompt.request.request_id) is prompt

    def _refusal(self, prompt: Prompt) -> BatonError | None:
        if prompt.request.request_id in self._prompts:
            return InvalidRequest(
                f"request_id {prompt.request.request_id!r} is already here", field="request_id"
            )
        if (refusal := self._engine.refusal_of(prompt.request.token_ids)) is not None:
            return refusal
        if self._queue.waiting >= self._limits.max_waiting:
            return Overloaded(f"the prefill queue holds {self._limits.max_waiting} prompts, its limit")
        return None

    def _admit(self, prompt: Prompt) -> bool:
        """Takes all blocks of a prompt whose first chunk is next, unless there are too few."""
        sequence = prompt.sequence
        cached_tokens = self._engine.take_cached_prefix(sequence, prompt.tokens - 1)
        try:
            self._engine.grow(sequence, prompt.tokens)
        except OutOfBlocks:
            self._engine.free(sequence)
            return False
        prompt.expected_cached_tokens = cached_tokens
        prompt.scheduled_at_s = time.monotonic()
        prompt.listener.on_scheduled(cached_tokens)
        return True

    def _first_tokens(self, prompt: Prompt, outputs: list[TokenOutput]) -> None:
        self._queue.remove(prompt)
        prompt.computed_at_s = time.monotonic()
        self._engine.clear_tail(prompt.sequence, prompt.tokens)
        prompt.listener.on_first_tokens(outputs)
        self._push(prompt)
        self._finish_if_done(prompt)

    def _push(self, prompt: Prompt) -> None:
        """Sends the blocks whose tokens are all computed and that have not left yet."""
        if prompt.session is None:
            return
        sequence = prompt.sequence
        if prompt.is_computed:
            ready = len(sequence.block_ids)
        else:
            ready = sequence.computed_tokens // self._engine.block_size
        if ready > prompt.pushed_blocks:
            if prompt.is_computed:
                prompt.tail_blocks, prompt.tail_pushed_at_s = ready - prompt.pushed_blocks, time.monotonic()
            positions = range(prompt.pushed_blocks, ready)
            prompt.session.push(positions, sequence.block_ids[prompt.pushed_blocks : ready])
            prompt.pushed_blocks = ready

    def _finish_if_done(self, prompt: Prompt) -> None:
        """Lets go of a prompt whose first tokens are out and whose blocks are all acknowledged."""
        if prompt.is_computed and prompt.result is not None:
            self._forget(prompt)
            report = prompt.report(prompt.result)
            self._handoffs += report.totals
            if (tail := prompt.tail(prompt.result)) is not None:
                self._on_tail(tail)
            prompt.tell_handed_off(prompt.result)

    def _expire(self) -> None:
        now_s = time.monotonic()
        for prompt in [p for p in self._prompts.values() if p.deadline_s <= now_s]:
            waited_s = now_s - prompt.arrived_at_s
            self._fail(prompt, DeadlineExceeded(f"prefill not done after {waited_s:.1f} s, the deadline"))

    def _fail(self, prompt: Prompt, error: BatonError) -> None:
        self._release(prompt, error.message)
        prompt.listener.on_failed(error)

    def _release(self, prompt: Prompt, reason: str) -> None:
        """Ends a prompt wherever it is. The blocks go back only after the transport has let go of them."""
        if prompt.session is not None and prompt.result is None:
            prompt.session.fence(reason)
        self._queue.remove(prompt)
        self._forget(prompt)

    def _forget(self, prompt: Prompt) -> None:
        del self._prompts[prompt.request.request_id]
        prompt.session = None  # it tells the prompt of its end: both would wait for the garbage collector
        self._engine.free(prompt.sequence)


def _chunk(prompt: Prompt, length: int) -> Chunk:
    is_last = length == prompt.sequence.pending_tokens
    return Chunk(prompt.sequence, length, tuple(prompt.choices) if is_last else ())
