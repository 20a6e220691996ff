"""One request on its way through the simulated fleet."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from baton.router.placement import Placement
from baton.sim.workload import SimRequest

if TYPE_CHECKING:
    from baton.sim.decode_worker import DecodeWorker
    from baton.sim.prefill_worker import PrefillWorker
    from baton.sim.sim_router import SimRouter


class Outcome(enum.Enum):
    FINISHED = "finished"
    OVERLOADED = "overloaded"
    QUEUE_TIMEOUT = "queue_timeout"
    TOO_LONG = "too_long"


@dataclass(slots=True, eq=False)
class Ride:
    """Times are seconds on the virtual clock. prefill is None for a local prefill. queued_at_s: at the prefill
    worker. expected_cached_tokens: found in its cache then. computed_tokens: whose KV the worker has that computes
    now. output_tokens: out already. prefill_blocks, decode_blocks: held on either side. reserved_blocks: of the
    latter those that a hand-off under way is to fill."""

    request: SimRequest
    arrived_at_s: float
    router: SimRouter | None = None
    placement: Placement | None = None
    prefill: PrefillWorker | None = None
    decode: DecodeWorker | None = None
    outcome: Outcome | None = None
    expected_cached_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    pushed_tokens: int = 0
    output_tokens: int = 0
    prefill_blocks: list[int] = field(default_factory=list)
    decode_blocks: list[int] = field(default_factory=list)
    reserved_blocks: list[int] = field(default_factory=list)
    is_scheduled: bool = False
    is_granted: bool = False
    queued_at_s: float = 0.0
    first_token_at_s: float | None = None
    last_token_at_s: float = 0.0
    joined_at_step: int = 0
    stay: int = 0

    @property
    def is_queued(self) -> bool:
        """Its prompt queues for a prefill worker."""
        return self.prefill is not None and not self.is_scheduled

    @property
    def number(self) -> int:
        return self.request.number

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def remaining_tokens(self) -> int:
        """Of the prompt, not computed yet; by expectation where its turn has not come."""
        return self.request.prompt_tokens - (self.computed_tokens or self.expected_cached_tokens)

    @property
    def tokens(self) -> int:
        """Prompt and output so far."""
        return self.request.prompt_tokens + self.output_tokens

    @property
    def is_prompt_computed(self) -> bool:
        return self.computed_tokens >= self.request.prompt_tokens

    @property
    def age(self) -> tuple[float, int]:
        """Smaller is older."""
        return self.arrived_at_s, self.number

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_at_s is None else self.first_token_at_s - self.arrived_at_s

    @property
    def tpot_s(self) -> float | None:
        """Mean of the later tokens; None while there is none."""
        if self.first_token_at_s is None or self.output_tokens < 2:
            return None
        return (self.last_token_at_s - self.first_token_at_s) / (self.output_tokens - 1)
