"""What one engine step computes: a list of chunks, prefill and decode alike."""

from __future__ import annotations

from dataclasses import dataclass

from baton.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `length` tokens of `sequence` that no step has taken up, at positions
    [sequence.launched_tokens, sequence.launched_tokens + length); its blocks are allocated.

    samplers: the sequences that draw their next token from the logits of the chunk's last row: none for an
    inner chunk of a prompt, the sequence itself in decode, all `n` choices at the end of a shared prompt.
    """

    sequence: Sequence
    length: int
    samplers: tuple[Sequence, ...] = ()
