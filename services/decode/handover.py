"""Sequences on their way to another decode worker: their blocks cross while they go on here.

hand_over: full blocks are pushed -> acknowledged: the sequence stops, between two steps
                                  -> failed, or the sequence ended first: it is as if nothing had been asked
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from baton.engine.engine import Engine
from baton.engine.sequence import Sequence
from baton.errors import BatonError, HandoffFailed, InvalidRequest
from baton.kvtransfer.base import SendSession, TransferResult, TransferState


@dataclass(slots=True, eq=False)
class Handover:
    """One choice of a request and the session to its receiver. tokens: the leading ones whose KV is asked for, in
    full blocks. on_settled: called once, on the engine's thread, with None once the sequence has stopped here.
    result: of a transfer that ended before it was begun here, for the receiver had it all."""

    request_id: str
    choice: int
    tokens: int
    on_settled: Callable[[BatonError | None], None]
    session: SendSession | None = None
    result: TransferResult | None = None

    def fence(self, reason: str) -> None:
        assert self.session is not None, "a hand-over begins with its session"
        self.session.fence(reason)


class Handovers:
    """All calls on the engine's thread. A block that is being pushed is held for that, whatever becomes of its
    sequence meanwhile; it is full, so nothing writes to it."""

    def __init__(
        self,
        engine: Engine,
        find: Callable[[Handover], Sequence | None],
        on_handed_over: Callable[[Sequence], None],
    ) -> None:
        """find: the sequence that is meant, where it is decoded here. on_handed_over: the receiver has everything,
        so that the sequence has to stop here."""
        self._engine = engine
        self._find = find
        self._on_handed_over = on_handed_over
        self._under_way: dict[Sequence, tuple[Handover, list[int]]] = {}

    def begin(self, handover: Handover) -> None:
        sequence = self._find(handover)
        if sequence is None:
            _refuse(handover, HandoffFailed(f"{handover.request_id} is not decoded here"))
        elif (refusal := self._refusal(sequence, handover)) is not None:
            _refuse(handover, refusal)
        else:
            self._push(sequence, handover)

    def _push(self, sequence: Sequence, handover: Handover) -> None:
        block_ids = sequence.block_ids[: handover.tokens // self._engine.block_size]
        self._engine.blocks.share(block_ids)
        self._under_way[sequence] = handover, block_ids
        assert handover.session is not None, "a hand-over begins with its session"
        handover.session.push(range(len(block_ids)), block_ids)
        if handover.result is not None:
            self.ended(handover, handover.result)

    def ended(self, handover: Handover, result: TransferResult) -> None:
        """The transfer has ended, well or not."""
        sequence = self._find(handover)
        if sequence is None:
            return
        if not self._is_under_way(sequence, handover):
            handover.result = result
        elif result.state is TransferState.DONE:
            self._end(sequence, None)
            self._on_handed_over(sequence)
        else:
            self._end(sequence, HandoffFailed(f"{handover.request_id}: {result.error}"))

    def keep(self, handover: Handover) -> None:
        """The router no longer waits for this hand-over: the sequence stays."""
        sequence = self._find(handover)
        if sequence is not None and self._is_under_way(sequence, handover):
            self.give_up(sequence, "given up by the router")

    def give_up(self, sequence: Sequence, reason: str) -> None:
        """Ends the hand-over of `sequence`, where there is one; its blocks are read no more after the return."""
        if sequence in self._under_way:
            self._under_way[sequence][0].fence(reason)
            self._end(sequence, HandoffFailed(reason))

    def _end(self, sequence: Sequence, outcome: BatonError | None) -> None:
        handover, block_ids = self._under_way.pop(sequence)
        self._engine.blocks.release(block_ids)
        handover.on_settled(outcome)

    def _is_under_way(self, sequence: Sequence, handover: Handover) -> bool:
        return sequence in self._under_way and self._under_way[sequence][0] is handover

    def _refusal(self, sequence: Sequence, handover: Handover) -> BatonError | None:
        if sequence in self._under_way:
            return InvalidRequest(f"{handover.request_id} is being handed over already", field="request_id")
        if handover.tokens % self._engine.block_size:
            return InvalidRequest(f"{handover.tokens} tokens are no full blocks", field="tokens")
        if handover.tokens > sequence.computed_tokens:
            computed = sequence.computed_tokens
            return InvalidRequest(
                f"{handover.tokens} tokens are asked for, {computed} are here", field="tokens"
            )
        return None


def _refuse(handover: Handover, refusal: BatonError) -> None:
    handover.fence(refusal.message)
    handover.on_settled(refusal)
