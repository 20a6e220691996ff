"""What a decode worker takes on at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """max_running: sequences in the batch. max_asking: requests waiting for memory. prefill_chunk_tokens,
    prefill_chunk_s: what a step computes at most of prompts that are computed here, as `ChunkLimit` has them: the
    bound on how long they hold up everybody's next token.
    handoff_timeout_s: how long promised memory waits for its blocks: as long as its prompt may have to give
    way to shorter ones."""

    max_running: int = 256
    max_asking: int = 1024
    prefill_chunk_tokens: int = 256
    handoff_timeout_s: float = 300.0
    prefill_chunk_s: float | None = None
