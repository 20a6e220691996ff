"""A generation request and its tokens, as every part of Baton sees them. Plain data, no I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from hashlib import sha256

_SESSION_KEY_BYTES = 16


def session_key(tenant: str, session_id: str) -> bytes:
    """What workers know a tenant's session by, 16 bytes; the tenant is length-prefixed, so that no two pairs share
    one."""
    name = tenant.encode()
    digest = sha256(len(name).to_bytes(8, "little") + name + session_id.encode()).digest()
    return digest[:_SESSION_KEY_BYTES]


class FinishReason(enum.Enum):
    """Why a sequence ended truthfully. Failures are errors, never finish reasons."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Checked once, where the request enters (`baton.router.api`).

    temperature: 0 is greedy. top_k: 0 is off. logprobs: None is off, k asks for the chosen token's logprob
    and the k most likely alternatives. seed: 64 bits, always set; choice c of a request draws from
    `seed_of(c)`, so that a sequence draws the same numbers on whichever worker it runs.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def seed_of(self, choice: int) -> int:
        """The 64-bit seed of choice `choice`; choice 0 keeps the request's own seed."""
        return (self.seed + choice * 0x9E3779B97F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request should be served within, in seconds; None where nothing was asked for. ttft_s: to its first
    token. tpot_s: mean of each later one."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One tokenized request for `n` choices over one prompt.

    request_id: unique inside the fleet, made by the router (the client's own id is only echoed and logged).
    cache_salt: namespace of the prefix cache. tenant: whose share of the fleet it takes; all requests of one name
    share one. deadline_s: seconds from arrival to forced end. priority: lower runs first.
    session_key: of `session_key`, empty without a session; prefix caches tell by it what was one session's alone.
    generated_tokens: how many of the last `token_ids` are output already: the request goes on where another worker
    left it, which is possible for one choice at a time.
    """

    request_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    cache_salt: str = ""
    session_id: str | None = None
    session_key: bytes = b""
    priority: int = 0
    deadline_s: float = 600.0
    objectives: Objectives = Objectives()
    tenant: str = ""
    generated_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids) - self.generated_tokens


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `index` counts from 0 within its choice; logprobs are natural logarithms of the
    model's own distribution (before temperature, penalties and filters)."""

    index: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One step of one choice: its token and, with the last one, why it ended.

    stop_token_id: the token of `stop_token_ids` or of the model's end-of-sequence set that ended it.
    """

    choice: int
    token: Token
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


@dataclass(slots=True)
class Route:
    """Where a request ran and what was reused, for headers, usage and logs."""

    prefill_worker: str = ""
    decode_worker: str = ""
    cached_tokens: int = 0
    reasons: list[str] = field(default_factory=list)
