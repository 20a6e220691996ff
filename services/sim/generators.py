"""Workloads of our own, seeded: the shapes of traffic that a fleet is tried with where no trace is at hand.

Arrivals are a Poisson process, lengths log-normal around a median, as traces of chat services show them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

from baton.errors import ConfigError
from baton.sim.workload import SimRequest, Workload, hash_of

BLOCK_TOKENS = 64
_SPREAD = 0.6
"""Standard deviation of a length's logarithm."""

_Source = Callable[[Random, float], Iterator[SimRequest]]


def generate(name: str, requests: int, rate_rps: float, seed: int) -> Workload:
    """The first `requests` requests at a mean of `rate_rps` new ones a second. Raises ConfigError listing the
    choices."""
    if name not in WORKLOADS:
        raise ConfigError(f"workload {name!r} is unknown (choices: {', '.join(WORKLOADS)})", field="workload")
    return _drawn(name, WORKLOADS[name], requests, rate_rps, seed)


def generate_single(
    prompt_median: int, output_median: int, requests: int, rate_rps: float, seed: int
) -> Workload:
    """Requests that share nothing, with prompts and answers of these median lengths, in tokens."""
    name = f"{prompt_median}:{output_median}"
    return _drawn(name, _single(prompt_median, output_median), requests, rate_rps, seed)


def _drawn(name: str, source: _Source, requests: int, rate_rps: float, seed: int) -> Workload:
    drawn = list(islice(source(Random(f"{name} {seed}"), rate_rps), requests))  # noqa: S311
    drawn.sort(key=lambda request: (request.arrival_s, request.number))
    return Workload(name, BLOCK_TOKENS, drawn)


def _arrivals(random: Random, rate_rps: float) -> Iterator[float]:
    at_s = 0.0
    while True:
        yield at_s
        at_s += random.expovariate(rate_rps)


def length(random: Random, median: int, most: int) -> int:
    """Tokens, log-normal, from 1 to `most`."""
    return max(1, min(most, round(random.lognormvariate(math.log(median), _SPREAD))))


def _single(prompt_median: int, output_median: int) -> _Source:
    """Prompts that share nothing."""

    def source(random: Random, rate_rps: float) -> Iterator[SimRequest]:
        for number, at_s in enumerate(_arrivals(random, rate_rps)):
            prompt_tokens = length(random, prompt_median, 32 * prompt_median)
            output_tokens = length(random, output_median, 8 * output_median)
            yield SimRequest(number, at_s, prompt_tokens, output_tokens, _blocks(number, prompt_tokens))

    return source


def _sessions(turns: int, first: int, added: int, output_median: int, pause_s: float) -> _Source:
    """Conversations: each prompt is all that was said before and `added` tokens more, `pause_s` after the last."""

    def source(random: Random, rate_rps: float) -> Iterator[SimRequest]:
        number = 0
        for session, start_s in enumerate(_arrivals(random, rate_rps / turns)):
            at_s, tokens = start_s, length(random, first, 8 * first)
            for _ in range(1 + int(random.expovariate(1 / max(1, turns - 1)))):
                output_tokens = length(random, output_median, 8 * output_median)
                hashes = _blocks(session, tokens + output_tokens - 1)
                yield SimRequest(number, at_s, tokens, output_tokens, hashes, f"session-{session}")
                number += 1
                tokens += output_tokens + length(random, added, 8 * added)
                at_s += random.expovariate(1 / pause_s)

    return source


def _shared(prefixes: int, prefix_tokens: int, own_median: int, output_median: int) -> _Source:
    """A few long system prompts, the first of them the most used (Zipf), each with a question of one's own."""

    def source(random: Random, rate_rps: float) -> Iterator[SimRequest]:
        weights = [1 / rank for rank in range(1, prefixes + 1)]
        common = prefix_tokens // BLOCK_TOKENS
        for number, at_s in enumerate(_arrivals(random, rate_rps)):
            prefix = random.choices(range(prefixes), weights)[0]
            own_tokens = length(random, own_median, 8 * own_median)
            own = _blocks(prefixes + number, own_tokens)
            tokens = common * BLOCK_TOKENS + own_tokens
            output_tokens = length(random, output_median, 8 * output_median)
            yield SimRequest(
                number, at_s, tokens, output_tokens, _blocks(prefix, prefix_tokens)[:common] + own
            )

    return source


def _blocks(stream: int, tokens: int) -> tuple[bytes, ...]:
    return tuple(hash_of(stream, block) for block in range(tokens // BLOCK_TOKENS))


WORKLOADS: dict[str, _Source] = {
    "chat": _sessions(turns=5, first=400, added=80, output_median=250, pause_s=30.0),
    "agent": _sessions(turns=12, first=4000, added=600, output_median=120, pause_s=3.0),
    "prompt-heavy": _single(prompt_median=6000, output_median=60),
    "output-heavy": _single(prompt_median=250, output_median=900),
    "shared-prefix": _shared(prefixes=20, prefix_tokens=4096, own_median=200, output_median=150),
}
