"""Prompts of wanted lengths for a server whose tokenizer is not at hand.

Where the server can tokenize, prompts are token ids that it uses itself for plain words: their length is exact.
Elsewhere, and for chat, prompts are words, and what a word costs is measured on the server beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from openai_stream import ServerUnusable, Target, prompt_tokens_of, tokenize
from workload import PlannedRequest

_TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by "
    "but not what all were we when your can said there use an each which she do how their if will up other "
    "about out many then them these so some her would make like him into time has look two more write go see "
    "number no way could people my than first water been call who oil its now find long down day did get come "
    "made may part over new sound take only little work know place year live me back give most very after"
)
_WORDS = _TEXT.split()
_PROBE_WORDS = (64, 320)


class PromptMaker(Protocol):
    def make(self, request: PlannedRequest) -> str | list[int]:
        """The prompt of `request`; equal segments give equal parts."""
        ...


class _Streams:
    """Random numbers below `size` by segment; the same segment always holds the same ones."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._seed = seed
        self._known: dict[tuple[tuple[int, int], int], list[int]] = {}

    def part(self, key: tuple[int, int], count: int) -> list[int]:
        if (key, count) not in self._known:
            rng = np.random.default_rng([self._seed, *key])
            self._known[key, count] = rng.integers(self._size, size=count).tolist()
        return self._known[key, count]


class TokenPrompts:
    """Prompts as token ids out of `pool`."""

    def __init__(self, pool: Sequence[int], seed: int) -> None:
        self._pool = sorted(set(pool))
        self._streams = _Streams(len(self._pool), seed)

    def make(self, request: PlannedRequest) -> list[int]:
        parts = (self._streams.part(segment.key, segment.tokens) for segment in request.segments)
        return [self._pool[index] for part in parts for index in part][: request.input_tokens]


class WordPrompts:
    """Prompts as words of `tokens_per_word` tokens, to which the server adds `overhead_tokens` a prompt."""

    def __init__(self, tokens_per_word: float, overhead_tokens: float, seed: int) -> None:
        self._streams = _Streams(len(_WORDS), seed)
        self._tokens_per_word = tokens_per_word
        self._overhead_tokens = overhead_tokens

    def make(self, request: PlannedRequest) -> str:
        parts = (
            self._streams.part(segment.key, round(segment.tokens / self._tokens_per_word))
            for segment in request.segments
        )
        words = max(1, round((request.input_tokens - self._overhead_tokens) / self._tokens_per_word))
        return " ".join([_WORDS[index] for part in parts for index in part][:words])


async def prompt_maker(target: Target, seed: int) -> PromptMaker:
    """The exact kind where the server allows it. Raises ServerUnusable."""
    if target.endpoint == "completions":
        pool = await tokenize(target.client, target.model, " ".join(_WORDS))
        if pool is not None:
            return TokenPrompts(pool, seed)
    return await _measured_words(target, seed)


async def _measured_words(target: Target, seed: int) -> WordPrompts:
    probes = [" ".join(_WORDS[i % len(_WORDS)] for i in range(words)) for words in _PROBE_WORDS]
    few, many = [await prompt_tokens_of(target, probe) for probe in probes]
    if few is None or many is None:
        return WordPrompts(1.0, 0.0, seed)
    tokens_per_word = (many - few) / (_PROBE_WORDS[1] - _PROBE_WORDS[0])
    if tokens_per_word <= 0:
        raise ServerUnusable(f"{_PROBE_WORDS} words were counted as {few} and {many} prompt tokens")
    return WordPrompts(tokens_per_word, few - tokens_per_word * _PROBE_WORDS[0], seed)
