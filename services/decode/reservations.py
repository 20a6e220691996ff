"""Memory promised to hand-offs: from the promise, while blocks arrive, to the landing or the fence."""

from __future__ import annotations

import time
from collections.abc import Callable

from baton.decode.work import Grant, Work
from baton.engine.block_manager import OutOfBlocks
from baton.engine.engine import Engine
from baton.errors import BatonError, HandoffFailed
from baton.fleet import HandoffTotals
from baton.kvtransfer.base import TransferError, TransferResult, TransferState
from baton.kvtransfer.group import Handoffs

Post = Callable[[Callable[[], None]], None]
"""Runs a command on the engine's thread."""

OnLanded = Callable[[Work, BatonError | None], None]


class Reservations:
    """All calls on the engine's thread; what the transport reports from its own is posted there. totals: over the
    hand-offs that have landed."""

    def __init__(self, engine: Engine, agent: Handoffs, timeout_s: float, post: Post) -> None:
        self._engine = engine
        self._agent = agent
        self._timeout_s = timeout_s
        self._post = post
        self.totals = HandoffTotals()

    def promise(self, work: Work, headroom_blocks: int, on_landed: OnLanded) -> Grant:
        """Takes the blocks that this worker caches, reserves those it lacks, and issues a ticket for them.

        Leaves `headroom_blocks` for sequences that run already. Raises OutOfBlocks, or HandoffFailed where the
        agent takes no more, having taken nothing.
        """
        engine, sequence = self._engine, work.primary
        cached_tokens = engine.take_cached_prefix(sequence, work.tokens)
        first = len(sequence.block_ids)
        try:
            missing = engine.blocks_for(work.tokens) - first
            if missing + headroom_blocks > engine.blocks.available:
                raise OutOfBlocks(missing + headroom_blocks, engine.blocks.available)
            work.reserved_block_ids = engine.grow(sequence, work.tokens)
        except OutOfBlocks:
            engine.free(sequence)
            raise
        try:
            work.transfer_id, ticket = self._agent.expect(
                range(first, first + missing),
                work.reserved_block_ids,
                min(self._timeout_s, work.request.deadline_s),
                lambda result: self._post(lambda: on_landed(work, _error_of(work, result))),
                work.tokens,
            )
        except TransferError as error:
            work.reserved_block_ids = []
            engine.free(sequence)
            raise HandoffFailed(f"request {work.request_id}: {error}") from error
        engine.blocks.mark_reserved(work.reserved_block_ids)
        work.reserve_s = time.monotonic() - work.arrived_at_s
        return Grant(cached_tokens, ticket, missing, work.reserve_s)

    def land(self, work: Work) -> None:
        """All blocks are in: they are the sequence's own now, and reusable."""
        self._unmark(work)
        work.transfer_id = None
        work.has_blocks = True
        self.totals += HandoffTotals(handoffs=1, reserve_s=work.reserve_s)
        self._engine.mark_computed(work.primary, work.tokens)

    def cancel(self, work: Work, reason: str) -> None:
        """After this returns nothing of the hand-off can land any more; the blocks may be freed."""
        if work.transfer_id is not None:
            self._agent.fence(work.transfer_id, reason)
            work.transfer_id = None
        self._unmark(work)

    def _unmark(self, work: Work) -> None:
        self._engine.blocks.unmark_reserved(work.reserved_block_ids)
        work.reserved_block_ids = []


def _error_of(work: Work, result: TransferResult) -> BatonError | None:
    if result.state is TransferState.DONE:
        return None
    return HandoffFailed(f"request {work.request_id}: {result.error}")
