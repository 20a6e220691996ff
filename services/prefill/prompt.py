"""One prompt in a prefill worker's hands."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from baton.engine.sequence import Sequence
from baton.errors import BatonError
from baton.fleet import HandoffTotals
from baton.kvtransfer.base import SendSession, TransferResult
from baton.request import GenerationRequest, TokenOutput


@dataclass(frozen=True, slots=True)
class HandoffReport:
    """What crossed and when, on this worker's clock; seconds count from `scheduled` (queued_s: from arrival to it),
    0.0 where a stage was not needed. scheme: empty where nothing had to cross."""

    blocks: int
    bytes: int
    queued_s: float
    compute_s: float
    first_byte_s: float
    last_byte_s: float
    acknowledged_s: float
    scheme: str

    @property
    def totals(self) -> HandoffTotals:
        """This one hand-off, to be added to those before it."""
        return HandoffTotals(
            handoffs=1,
            queued_s=self.queued_s,
            first_byte_s=self.first_byte_s,
            last_byte_s=self.last_byte_s,
            acknowledged_s=self.acknowledged_s,
            exposed_s=max(0.0, self.acknowledged_s - self.compute_s),
        )


class Tail(NamedTuple):
    """The end of a hand-off that no computation hides: acknowledged `seconds` after the transport was given it."""

    scheme: str
    bytes: float
    seconds: float


class PromptListener(Protocol):
    """Hears of a prompt's progress, on the engine's thread, and of a hand-off's end on any: return at once."""

    def on_scheduled(self, cached_tokens: int) -> None: ...

    def on_first_tokens(self, outputs: list[TokenOutput]) -> None: ...

    def on_handed_off(self, report: HandoffReport) -> None: ...

    def on_failed(self, error: BatonError) -> None: ...


@dataclass(slots=True, eq=False)
class Prompt:
    """choices[0] is the sequence that is computed; the others draw their first token from its last logits.
    waited_s: at other workers, before it came here. expected_cached_tokens: found in the prefix cache on arrival;
    what holds is found out with the first chunk.
    tail: the blocks that were left to push when the prompt was computed."""

    request: GenerationRequest
    choices: list[Sequence]
    listener: PromptListener
    waited_s: float = 0.0
    expected_cached_tokens: int = 0
    arrived_at_s: float = field(default_factory=time.monotonic)
    scheduled_at_s: float = 0.0
    computed_at_s: float = 0.0
    session: SendSession | None = None
    pushed_blocks: int = 0
    tail_blocks: int = 0
    tail_pushed_at_s: float = 0.0
    is_handoff_told: bool = False
    result: TransferResult | None = None

    @property
    def sequence(self) -> Sequence:
        return self.choices[0]

    @property
    def tokens(self) -> int:
        """To be computed and handed over: those of the prompt and of output that exists already."""
        return len(self.request.token_ids)

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def queued_at_s(self) -> float:
        return self.arrived_at_s - self.waited_s

    @property
    def remaining_tokens(self) -> int:
        """Not computed yet; by expectation where no blocks are held."""
        return self.tokens - (self.sequence.computed_tokens or self.expected_cached_tokens)

    @property
    def computed_tokens(self) -> int:
        return self.sequence.computed_tokens

    @property
    def deadline_s(self) -> float:
        return self.arrived_at_s + self.request.deadline_s

    def remaining_s(self) -> float:
        return self.deadline_s - time.monotonic()

    @property
    def is_computed(self) -> bool:
        return self.computed_at_s > 0.0

    def tell_handed_off(self, result: TransferResult) -> None:
        """Once, whichever thread knows first; not before the first tokens have been told."""
        if not self.is_handoff_told:
            self.is_handoff_told = True
            self.listener.on_handed_off(self.report(result))

    def tail(self, result: TransferResult) -> Tail | None:
        """None where nothing of the tail had to cross."""
        if not (self.tail_blocks and result.blocks):
            return None
        tail_bytes = result.bytes * min(1.0, self.tail_blocks / result.blocks)
        return Tail(result.scheme, tail_bytes, result.done_at_s - self.tail_pushed_at_s)

    def report(self, result: TransferResult) -> HandoffReport:
        def since_scheduled(at_s: float) -> float:
            return max(0.0, at_s - self.scheduled_at_s) if at_s else 0.0

        return HandoffReport(
            result.blocks,
            result.bytes,
            self.scheduled_at_s - self.arrived_at_s,
            self.computed_at_s - self.scheduled_at_s,
            since_scheduled(result.first_byte_at_s),
            since_scheduled(result.last_byte_at_s),
            since_scheduled(result.done_at_s),
            result.scheme,
        )
