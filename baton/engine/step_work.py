"""How much one engine step computes: the amounts that its duration goes by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from baton.engine.batch import Chunk


@dataclass(frozen=True, slots=True)
class StepWork:
    """prompt_pairs: of a prompt's computed tokens with those that each sees. sequences: that gain one token, seeing
    context_tokens together; a prompt's last single token is like one of these."""

    prompt_tokens: int = 0
    prompt_pairs: float = 0.0
    sequences: int = 0
    context_tokens: int = 0

    @classmethod
    def of(cls, chunks: Iterable[Chunk]) -> StepWork:
        """To be asked before the chunks are launched."""
        prompt_tokens = sequences = context_tokens = 0
        prompt_pairs = 0.0
        for chunk in chunks:
            seen_tokens = chunk.sequence.launched_tokens
            if chunk.length == 1:
                sequences += 1
                context_tokens += seen_tokens
            else:
                prompt_tokens += chunk.length
                prompt_pairs += chunk.length * (seen_tokens + chunk.length / 2)
        return cls(prompt_tokens, prompt_pairs, sequences, context_tokens)
