"""The limits and options of the HTTP face, complete when built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from baton.request import Objectives


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """Options of `create_app`.

    api_keys: Bearer keys; empty lets everyone in. max_body_bytes: of a request's body. max_choices: of `n`.
    max_prompts: of a list in `prompt`. max_sequences: prompts times choices of one request.
    max_stop_strings, max_stop_string_chars, max_stop_token_ids, max_logit_bias_entries, max_logprobs: of the
    fields of these names. default_completion_tokens: `max_tokens` of /v1/completions where the client gave
    none (OpenAI's 16). request_deadline_s: from arrival to forced end. objectives: of requests that
    name none of their own. metrics: the Prometheus text.
    """

    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = 8 * 1024 * 1024
    max_choices: int = 128
    max_prompts: int = 128
    max_sequences: int = 256
    max_stop_strings: int = 16
    max_stop_string_chars: int = 256
    max_stop_token_ids: int = 128
    max_logit_bias_entries: int = 1024
    max_logprobs: int = 20
    default_completion_tokens: int = 16
    request_deadline_s: float = 600.0
    objectives: Objectives = field(default_factory=Objectives)
    metrics: Callable[[], bytes] | None = None
