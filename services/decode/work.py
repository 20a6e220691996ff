"""One request in a decode worker's hands, and what its router hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from baton.engine.sequence import Sequence
from baton.errors import BatonError, InvalidRequest
from baton.request import GenerationRequest, TokenOutput


@dataclass(frozen=True, slots=True)
class Grant:
    """Memory is promised. ticket: sealed, for the prefill worker; empty where the prompt is computed here.
    waited_s: since the request came, on this worker's clock."""

    cached_tokens: int
    ticket: bytes = b""
    missing_blocks: int = 0
    waited_s: float = 0.0


OnGrant = Callable[[Grant | BatonError], None]
"""Called exactly once, on the engine's thread: hand over and return at once."""


@dataclass(slots=True, eq=False)
class Work:
    """choices[0] holds the prompt's blocks until the others have forked from it.

    is_local: this worker computes the prompt. on_grant: tells the router about memory, once. reserve_s: from
    arrival to the promise of memory. transfer_id: of the hand-off under way. first_outputs: from the prefill
    worker, once the router sent them. unfinished: choices in the batch or waiting for it; 0 until the prompt's KV
    and first tokens are here.
    """

    request: GenerationRequest
    router_id: str
    choices: list[Sequence]
    is_local: bool
    on_grant: OnGrant
    arrived_at_s: float = field(default_factory=time.monotonic)
    reserve_s: float = 0.0
    transfer_id: bytes | None = None
    reserved_block_ids: list[int] = field(default_factory=list)
    has_blocks: bool = False
    first_outputs: list[TokenOutput] | None = None
    is_granted: bool = False
    unfinished: int = 0

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def primary(self) -> Sequence:
        return self.choices[0]

    @property
    def tokens(self) -> int:
        """Whose KV is to be here before the first step: those of the prompt and of output that exists already."""
        return len(self.request.token_ids)

    @property
    def deadline_s(self) -> float:
        return self.arrived_at_s + self.request.deadline_s

    def refusal_of(self, first_outputs: list[TokenOutput], vocab_size: int) -> InvalidRequest | None:
        """Why the choices cannot go on from these tokens; None where they can."""
        told: dict[int, int] = {}
        for output in first_outputs:
            first = self.request.generated_tokens
            is_next = output.token.index == told.get(output.choice, first)
            if output.choice >= len(self.choices) or not is_next:
                return InvalidRequest(
                    f"first_outputs have token {output.token.index} of choice {output.choice}, which is not the "
                    f"next of {len(self.choices)} choices that have {first}",
                    field="first_outputs",
                )
            told[output.choice] = output.token.index + 1
        if not told:
            return InvalidRequest("first_outputs are empty", field="first_outputs")
        if (largest := max(output.token.token_id for output in first_outputs)) >= vocab_size:
            return InvalidRequest(f"token id {largest} is not below {vocab_size}", field="first_outputs")
        return None


@dataclass(frozen=True, slots=True)
class Report:
    """What one step means for one request: new tokens, the failure that ended it, or choices that went on from here
    to another worker."""

    router_id: str
    request_id: str
    outputs: list[TokenOutput]
    failure: BatonError | None = None
    handed_over: tuple[int, ...] = ()


OnReports = Callable[[list[Report]], None]
"""All reports of one step; called on the engine's thread: hand over and return at once."""
