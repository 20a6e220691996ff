"""The fleet as a router sees it: workers, what they are and how busy they are. Plain data, no I/O."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

DEFAULT_PREFILL_TOKENS_PER_S = 1000.0
DEFAULT_DECODE_STEP_S = 0.02
DEFAULT_BATCH_SLOPE = 1 / 32
"""Assumed of a worker that announces no measured profile; the slope is the growth of a decode step with each
further sequence, relative to the step at batch 1."""

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])
"""One worker's, or a column of one for each worker."""


class Role(enum.Enum):
    PREFILL = "prefill"
    DECODE = "decode"


class WorkerState(enum.Enum):
    """READY alone gets new requests; SUSPECTED does where nobody else is there."""

    READY = "ready"
    DRAINING = "draining"
    STALLED = "stalled"
    SUSPECTED = "suspected"


@dataclass(frozen=True, slots=True)
class KVBlocks:
    """Blocks of a pool by what they hold; free + cached + used + reserved == total."""

    total: int = 0
    free: int = 0
    cached: int = 0
    used: int = 0
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class HandoffTotals:
    """Sums over a worker's completed hand-offs since its start, the same fields as the wire's HandoffTotals. Each
    is a difference on that worker's own clock; a decode worker knows `handoffs` and `reserve_s` alone, a prefill
    worker the rest."""

    handoffs: int = 0
    queued_s: float = 0.0
    reserve_s: float = 0.0
    first_byte_s: float = 0.0
    last_byte_s: float = 0.0
    acknowledged_s: float = 0.0
    exposed_s: float = 0.0

    def __add__(self, other: HandoffTotals) -> HandoffTotals:
        return HandoffTotals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is at one moment; the same fields as the wire's WorkerLoad."""

    running: int = 0
    waiting: int = 0
    queued_tokens: int = 0
    kv_blocks: KVBlocks = field(default_factory=KVBlocks)
    kv_bytes_sent: int = 0
    kv_bytes_received: int = 0
    preemptions: int = 0
    handoffs: HandoffTotals = field(default_factory=HandoffTotals)
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a worker serves. fingerprint: of the weights, whatever the dtype. max_model_tokens counts prompt and
    output together."""

    name: str
    fingerprint: str
    max_model_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """Speeds, measured at start and corrected from live figures (`baton.worker.live_profile`); 0 where unknown.

    Prefill: a rate of tokens, for attention seconds a pair of a computed and a seen token, and seconds that each
    pass takes whatever it computes. Decode: seconds of a step at batch 1 over an empty context, of each further
    sequence, and of each token of context in the batch. Hand-off: bytes/s, and seconds that it takes whatever its
    size; by one of the schemes that work only within a host, `same_host_*`, as the others where no rate is known.
    cost_per_hour: as configured, in the fleet's currency. prefill_chunk_tokens, prefill_chunk_s: what a pass
    carries of prompts at most, as configured, in tokens and in seconds that these add to it; 0: any. step_spread:
    standard deviation of the logarithm of what passes and steps take, handoff_spread: of what hand-offs take; the
    other terms say what they usually take.
    """

    prefill_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    copy_bytes_per_s: float = 0.0
    prefill_s_per_pair: float = 0.0
    decode_s_per_sequence: float = 0.0
    decode_s_per_context_token: float = 0.0
    prefill_pass_s: float = 0.0
    handoff_latency_s: float = 0.0
    cost_per_hour: float = 0.0
    prefill_chunk_tokens: float = 0.0
    prefill_chunk_s: float = 0.0
    same_host_bytes_per_s: float = 0.0
    same_host_latency_s: float = 0.0
    step_spread: float = 0.0
    handoff_spread: float = 0.0

    @property
    def prefill_rate(self) -> float:
        """Tokens/s, attention and what each pass takes aside."""
        return self.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S

    @property
    def first_sequence_s(self) -> float:
        return self.decode_step_s or DEFAULT_DECODE_STEP_S

    @property
    def further_sequence_s(self) -> float:
        return self.decode_s_per_sequence or self.first_sequence_s * DEFAULT_BATCH_SLOPE

    @property
    def most_chunk_tokens(self) -> float:
        return self.prefill_chunk_tokens or math.inf

    @property
    def most_chunk_s(self) -> float:
        return self.prefill_chunk_s or math.inf

    def prefill_s(self, tokens: Amount, context_tokens: Amount) -> Amount:
        """Seconds to compute `tokens` that follow `context_tokens` whose KV is there already, in as many passes as
        the limits of one make of it."""
        computed_s = self.chunk_s(tokens, context_tokens)
        shares = np.maximum(tokens / self.most_chunk_tokens, computed_s / self.most_chunk_s)
        passes: Amount = np.maximum(1.0, np.ceil(shares))
        return passes * self.prefill_pass_s + computed_s

    def chunk_s(self, tokens: Amount, context_tokens: Amount) -> Amount:
        """What these tokens add to a pass that is made anyway."""
        return tokens / self.prefill_rate + tokens * (context_tokens + tokens / 2) * self.prefill_s_per_pair

    def chunk_tokens(self, seconds: float, context_tokens: int) -> int:
        """Tokens after `context_tokens` that add at most `seconds` to a pass that is made anyway."""
        token_s = 1 / self.prefill_rate + context_tokens * self.prefill_s_per_pair
        return int(2 * seconds / (token_s + math.sqrt(token_s**2 + 2 * self.prefill_s_per_pair * seconds)))

    def step_s(self, sequences: Amount, context_tokens: Amount) -> Amount:
        """Seconds of one decode step of `sequences` that see `context_tokens` together."""
        further_s = (sequences - 1) * self.further_sequence_s
        return self.first_sequence_s + further_s + context_tokens * self.decode_s_per_context_token

    @property
    def same_host_link(self) -> tuple[float, float]:
        """Of hand-offs within the host, latency in seconds and bytes/s."""
        if self.same_host_bytes_per_s:
            return self.same_host_latency_s, self.same_host_bytes_per_s
        return self.handoff_latency_s, self.copy_bytes_per_s

    def handoff_s(self, handed_bytes: float, is_same_host: bool) -> float:
        """Seconds until bytes that leave at once are acknowledged; only the latency where no rate is known."""
        network = self.handoff_latency_s, self.copy_bytes_per_s
        latency_s, bytes_per_s = self.same_host_link if is_same_host else network
        return latency_s + (handed_bytes / bytes_per_s if bytes_per_s else 0.0)


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What does not change while a worker runs in one role.

    epoch: 8 random bytes made at each start of its process. address: host:port of its gRPC server.
    kv_layout: msgpack of `baton.kvtransfer.layout.KVLayout`, of rank 0. block_size: tokens a block.
    schemes: KV transports that are open there, fastest first. kv_events_address, kv_replay_address: host:port of
    the sockets of `baton.kv_events`; empty where these are off. role_changes_unix_s: its latest, the last one last.
    max_running: sequences in its batch at most where it decodes; 0: unknown.
    """

    worker_id: str
    epoch: bytes
    role: Role
    address: str
    pid: int
    model: ModelInfo
    kv_layout: bytes
    block_size: int
    profile: WorkerProfile
    version: str
    schemes: tuple[str, ...] = ()
    kv_events_address: str = ""
    kv_replay_address: str = ""
    role_changes_unix_s: tuple[float, ...] = ()
    max_running: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    worker: WorkerInfo
    state: WorkerState
    load: WorkerLoad


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers a router knows, as a snapshot."""

    members: tuple[Member, ...] = ()

    def ready(self, role: Role) -> list[Member]:
        return [m for m in self.members if m.worker.role is role and m.state is WorkerState.READY]
