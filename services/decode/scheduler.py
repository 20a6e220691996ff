"""Continuous batching: every running sequence gains one token a step, whatever else joins or leaves.

Where the engine overlaps, a step is launched before the one in flight has landed: what stops a sequence is seen one
step late, and what that step computed of it is dropped.

Stations of a request, all on the engine's thread:

    submit -> asking (bounded FIFO, until there is memory)
           -> receiving (memory promised; blocks arrive while the prefill worker computes; see `reservations`)
           -> running (in the batch)
           -> ended: every choice has its finish reason, or the request failed or was released

A sequence that the pool cannot hold any longer is preempted: it loses its blocks and waits, before all
newcomers, to be computed anew from its tokens. A prompt prefilled here enters through the same queue.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from baton.decode.batch import Batch
from baton.decode.handover import Handover, Handovers
from baton.decode.limits import DecodeLimits
from baton.decode.reservations import Post, Reservations
from baton.decode.work import Grant, OnReports, Report, Work
from baton.engine.batch import Chunk
from baton.engine.block_manager import OutOfBlocks
from baton.engine.engine import Engine
from baton.engine.memory import StepOutOfMemory
from baton.engine.sampler import NonFiniteLogits
from baton.engine.sequence import Sequence
from baton.engine.step_room import ChunkLimit
from baton.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    HandoffFailed,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from baton.fleet import WorkerLoad, WorkerProfile
from baton.kvtransfer.group import Handoffs
from baton.request import TokenOutput


class DecodeScheduler:
    """Implements `baton.engine.loop.Scheduler`."""

    def __init__(
        self,
        engine: Engine,
        agent: Handoffs,
        limits: DecodeLimits,
        post: Post,
        on_reports: OnReports,
        speeds: Callable[[], WorkerProfile] = WorkerProfile,
    ) -> None:
        """speeds: of this worker, by which a step's time for prompts is limited."""
        self.handovers = Handovers(engine, self._decoding, self._handed_over)
        self._engine = engine
        self._agent = agent
        self._limits = limits
        self._on_reports = on_reports
        self._reservations = Reservations(engine, agent, limits.handoff_timeout_s, post)
        self._works: dict[str, Work] = {}
        self._asking: deque[Work] = deque()
        prefill = ChunkLimit(limits.prefill_chunk_tokens, limits.prefill_chunk_s, speeds)
        self._batch = Batch(engine, limits.max_running, prefill)
        self._load = self._measure_load()

    def submit(self, work: Work) -> None:
        if (refusal := self._refusal(work)) is not None:
            work.on_grant(refusal)
            return
        self._works[work.request_id] = work
        self._asking.append(work)

    def received(self, work: Work, error: BatonError | None) -> None:
        """The hand-off has ended: all blocks are in, or none will come any more."""
        if self._works.get(work.request_id) is not work:
            return
        if error is not None:
            self._fail(work, error)
            return
        self._reservations.land(work)
        self._start_if_complete(work)

    def start(self, request_id: str, first_outputs: list[TokenOutput]) -> None:
        work = self._works.get(request_id)
        if work is None or work.is_local or work.first_outputs is not None:
            return
        if (refusal := work.refusal_of(first_outputs, self._engine.model.vocab_size)) is not None:
            self._fail(work, refusal)
            return
        work.first_outputs = first_outputs
        self._start_if_complete(work)

    def _decoding(self, handover: Handover) -> Sequence | None:
        """The sequence meant, where it is running or preempted here."""
        self._land()
        work = self._works.get(handover.request_id)
        if work is None or handover.choice >= len(work.choices):
            return None
        sequence = work.choices[handover.choice]
        return sequence if sequence.output_tokens > 0 and self._batch.holds(sequence) else None

    def _handed_over(self, sequence: Sequence) -> None:
        router_id = self._works[sequence.request_id].router_id
        self._end_choice(sequence)
        self._on_reports([Report(router_id, sequence.request_id, [], handed_over=(sequence.choice,))])

    def release(self, request_id: str, choices: list[int]) -> None:
        """Ends some choices of a request, or with none named all of it, wherever they are."""
        if choices:
            self._land()  # a prompt's step draws for choices that take their blocks from the first only then
        work = self._works.get(request_id)
        if work is None:
            return
        if not choices:
            self._end(work, Cancelled("released by the router"))
        for choice in choices:
            if self._works.get(request_id) is work and choice < len(work.choices):
                self._release_choice(work, work.choices[choice])

    def _release_choice(self, work: Work, sequence: Sequence) -> None:
        if work.unfinished == 0:
            work.first_outputs = [o for o in work.first_outputs or [] if o.choice != sequence.choice]
            if not work.first_outputs:
                self._end(work, Cancelled("every choice was released by the router"))
        elif sequence.output_tokens > 0 and self._batch.holds(sequence):
            self._end_choice(sequence)

    def release_router(self, router_id: str) -> None:
        for work in [w for w in self._works.values() if w.router_id == router_id]:
            self._end(work, Cancelled("the router's stream has ended"))

    def abandon(self, work: Work) -> None:
        """The router no longer waits for the grant of this very work."""
        if self._works.get(work.request_id) is work:
            self._end(work, Cancelled("abandoned by the router"))

    def step(self) -> bool:
        self._expire()
        self._grant()
        is_busy = self._engine.in_flight > 0
        if is_busy and self._batch.needs_landed():
            self._land()
        chunks = self._batch.plan()
        is_launched = bool(chunks) and self._launch(chunks)
        self._land(leaving=1 if is_launched and self._engine.overlaps else 0)
        self._load = self._measure_load()
        return is_busy or bool(chunks)

    def _launch(self, chunks: list[Chunk]) -> bool:
        """Whether there was memory for this step; if not, the next is a smaller one."""
        try:
            self._engine.launch(chunks)
        except StepOutOfMemory as error:
            self._land()
            work = self._works.get(chunks[0].sequence.request_id)
            if work is not None and not self._batch.halve():
                self._fail(work, error)
            return False
        return True

    def _land(self, leaving: int = 0) -> None:
        """Delivers what the steps in flight have drawn, but for the latest `leaving` of them, which the device
        computes meanwhile."""
        try:
            while self._engine.in_flight > leaving:
                self._deliver(self._engine.land())
        except NonFiniteLogits as error:
            self._engine.blocks.clear_cache()  # whatever made them may be in blocks that others would reuse
            self._fail(self._works[error.request_id], error)

    def next_deadline_s(self) -> float | None:
        return min((work.deadline_s for work in self._works.values()), default=None)

    def close(self) -> None:
        for work in list(self._works.values()):
            self._fail(work, Unavailable("the decode worker is stopping"))
        self._engine.withdraw()

    def load(self) -> WorkerLoad:
        """As of the end of the last step; callable from any thread."""
        return self._load

    def _measure_load(self) -> WorkerLoad:
        stats = self._agent.stats()
        return WorkerLoad(
            running=self._batch.num_running,
            waiting=len(self._works) - self._batch.running_requests(),
            queued_tokens=self._batch.waiting_tokens,
            kv_blocks=self._engine.blocks.usage(),
            kv_bytes_sent=stats.bytes_sent,
            kv_bytes_received=stats.bytes_received,
            preemptions=self._batch.preemptions,
            handoffs=self._reservations.totals,
        )

    def _refusal(self, work: Work) -> BatonError | None:
        if work.request_id in self._works:
            return InvalidRequest(f"request_id {work.request_id!r} is already here", field="request_id")
        if (refusal := self._engine.refusal_of(work.request.token_ids)) is not None:
            return refusal
        if len(self._asking) >= self._limits.max_asking:
            return Overloaded(f"{self._limits.max_asking} requests wait for KV memory, the limit")
        return None

    def _grant(self) -> None:
        """Promises memory in order of arrival, unless sequences that had it before still wait for theirs."""
        while self._asking and not self._batch.has_waiting and self._has_room():
            work = self._asking[0]
            try:
                grant = self._grant_of(work)
            except OutOfBlocks:
                return
            except HandoffFailed as error:
                self._end(work, error)
                continue
            self._asking.popleft()
            work.is_granted = True
            work.on_grant(grant)

    def _grant_of(self, work: Work) -> Grant:
        if not work.is_local:
            return self._reservations.promise(work, self._batch.num_running, self.received)
        work.unfinished = len(work.choices)
        self._batch.wait(work.primary, work)
        return Grant(self._engine.cached_tokens(work.primary))

    def _has_room(self) -> bool:
        """Whether the batch has, once those whose blocks arrive are in it."""
        receiving = sum(len(w.choices) for w in self._works.values() if w.is_granted and not w.unfinished)
        return self._batch.num_running + receiving < self._limits.max_running

    def _start_if_complete(self, work: Work) -> None:
        """Puts a handed-off request into the batch once both its blocks and its first tokens are here."""
        if not work.has_blocks or work.first_outputs is None:
            return
        for output in work.first_outputs:
            work.choices[output.choice].token_ids.append(output.token.token_id)
        going_on = {output.choice for output in work.first_outputs}
        work.unfinished = len(going_on)
        self._batch.fork(work, [sequence for sequence in work.choices[1:] if sequence.choice in going_on])
        if 0 in going_on:
            self._batch.run(work.primary, work)
        else:
            self._engine.free(work.primary)

    def _deliver(self, outputs: list[tuple[Sequence, TokenOutput]]) -> None:
        reports: dict[str, Report] = {}
        ended: list[Sequence] = []
        for sequence, output in outputs:
            work = self._works[sequence.request_id]
            report = reports.setdefault(work.request_id, Report(work.router_id, work.request_id, []))
            report.outputs.append(output)
            if output.finish_reason is not None:
                ended.append(sequence)
            elif sequence is not work.primary and sequence.output_tokens == 1 and not sequence.block_ids:
                self._batch.fork(work, [sequence])
        for sequence in ended:
            self._end_choice(sequence)
        self._on_reports(list(reports.values()))

    def _end_choice(self, sequence: Sequence) -> None:
        self.handovers.give_up(sequence, "the sequence has ended")
        self._engine.free(sequence)
        self._batch.leave(sequence)
        work = self._works[sequence.request_id]
        work.unfinished -= 1
        if work.unfinished == 0:
            del self._works[work.request_id]

    def _expire(self) -> None:
        now_s = time.monotonic()
        for work in [w for w in self._works.values() if w.deadline_s <= now_s]:
            deadline_s = work.request.deadline_s
            self._fail(work, DeadlineExceeded(f"not done after {deadline_s:.1f} s, the deadline"))

    def _fail(self, work: Work, error: BatonError) -> None:
        self._end(work, error)
        if work.is_granted:
            self._on_reports([Report(work.router_id, work.request_id, [], error)])

    def _end(self, work: Work, error: BatonError) -> None:
        """Takes a request out of every station and gives all its blocks back."""
        del self._works[work.request_id]
        self._reservations.cancel(work, error.message)
        if not work.is_granted:
            self._asking.remove(work)
            work.on_grant(error)
        for sequence in work.choices:
            self.handovers.give_up(sequence, error.message)
            self._engine.free(sequence)
            self._batch.leave(sequence)
