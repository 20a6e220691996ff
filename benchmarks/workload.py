"""What is asked for and when: synthetic requests, or a trace in Mooncake's form.

A prompt is planned as segments, of which equal ones become equal tokens: so a server's prefix cache meets
exactly the repetition that the workload describes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

TRACE_BLOCK_TOKENS = 512
_SHARED, _UNIQUE, _TRACED = range(3)


class MalformedTrace(Exception):
    """A line of the trace cannot be replayed; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`tokens` tokens drawn from the random stream named by `key`."""

    key: tuple[int, int]
    tokens: int


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """at_s: seconds after the start of the replay. The prompt is the segments in a row, cut to `input_tokens`."""

    at_s: float
    segments: tuple[Segment, ...]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class TokenRange:
    """Lengths drawn evenly from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, rng: np.random.Generator) -> int:
        return int(rng.integers(self.low, self.high, endpoint=True))


def synthetic(
    requests: int,
    rate: float,
    input_tokens: TokenRange,
    output_tokens: TokenRange,
    shared_prefix_tokens: int,
    seed: int,
) -> list[PlannedRequest]:
    """`requests` requests as a Poisson process of `rate` a second (infinite: all at once).

    The first `shared_prefix_tokens` tokens are the same in all prompts and count towards their length.
    """
    rng = np.random.default_rng(seed)
    at_s = np.zeros(requests) if math.isinf(rate) else rng.exponential(1 / rate, requests).cumsum()
    plan = []
    for index in range(requests):
        length = input_tokens.draw(rng)
        unique = Segment((_UNIQUE, index), max(0, length - shared_prefix_tokens))
        segments = (Segment((_SHARED, 0), shared_prefix_tokens), unique)
        plan.append(PlannedRequest(float(at_s[index]), segments, length, output_tokens.draw(rng)))
    return plan


def traced(
    path: Path, time_scale: float, length_scale: float, max_requests: int | None
) -> list[PlannedRequest]:
    """The requests of a trace file, times and lengths multiplied by their scales.

    One JSON object a line: `timestamp` in ms, `input_length` and `output_length` in tokens, `hash_ids`: one
    for every 512 tokens of the prompt, equal ids for equal tokens (Qin et al.: "Mooncake", FAST '25). Blocks
    shrink with `length_scale` like everything else. Raises MalformedTrace, or OSError for the file itself.
    """
    block_tokens = max(1, round(TRACE_BLOCK_TOKENS * length_scale))
    plan = []
    for index, line in enumerate(_lines(path, max_requests)):
        length = max(1, round(line.input_length * length_scale))
        blocks = tuple(Segment((_TRACED, hash_id), block_tokens) for hash_id in line.hash_ids)
        # Rounding may leave the blocks short of the prompt: what is missing belongs to this request alone.
        rest = Segment((_UNIQUE, index), max(0, length - block_tokens * len(blocks)))
        output_tokens = max(1, round(line.output_length * length_scale))
        plan.append(
            PlannedRequest(line.timestamp * time_scale / 1000, (*blocks, rest), length, output_tokens)
        )
    if not plan:
        raise MalformedTrace(f"{path}: holds no request")
    first_s = min(request.at_s for request in plan)
    return [replace(request, at_s=request.at_s - first_s) for request in plan]


class _TraceLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def _lines(path: Path, max_requests: int | None) -> Iterator[_TraceLine]:
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            if max_requests is not None and number > max_requests:
                return
            yield _parse(text, f"{path} line {number}")


def _parse(text: bytes, where: str) -> _TraceLine:
    try:
        fields: dict[str, Any] = msgspec.json.decode(text, type=dict)
    except msgspec.DecodeError as error:
        raise MalformedTrace(f"{where}: not a JSON object: {error}") from error
    for name in _TraceLine.__struct_fields__:
        if name not in fields:
            raise MalformedTrace(f"{where}: {name}: missing")
    try:
        line = msgspec.convert(fields, _TraceLine)
    except msgspec.ValidationError as error:
        raise MalformedTrace(f"{where}: {error}") from error
    for name, least in (("timestamp", 0), ("input_length", 1), ("output_length", 0)):
        if getattr(line, name) < least:
            raise MalformedTrace(f"{where}: {name}: is {getattr(line, name)}, has to be at least {least}")
    blocks = math.ceil(line.input_length / TRACE_BLOCK_TOKENS)
    if len(line.hash_ids) != blocks:
        raise MalformedTrace(
            f"{where}: hash_ids: has {len(line.hash_ids)} ids, "
            f"input_length {line.input_length} takes {blocks} of {TRACE_BLOCK_TOKENS} tokens"
        )
    if min(line.hash_ids) < 0:
        raise MalformedTrace(f"{where}: hash_ids: has {min(line.hash_ids)}, ids start at 0")
    return line
