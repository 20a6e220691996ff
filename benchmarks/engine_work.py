"""What the engines of `engine.py` are asked to do, and the loop in which each answers from its own process.

Peers run this in environments of their own, so it imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

VOCAB = 49152
REALTIME_PRIORITY = 1


class Work(NamedTuple):
    """kind: "prefill" of `batch` prompts of `tokens`, or "decode" of as many sequences behind as many tokens."""

    kind: str
    batch: int
    tokens: int
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.batch} × {self.tokens}"

    @property
    def tokens_a_time(self) -> int:
        """Tokens that one repetition computes."""
        return self.batch * self.tokens if self.kind == "prefill" else self.batch


class Contender(Protocol):
    def burst(self, work: Work, repetitions: int) -> list[float]:
        """Seconds of each prefill or decode step, after one that does not count."""
        ...


def prompts(work: Work) -> list[list[int]]:
    """Token ids, the same for every contender."""
    generator = random.Random(1)
    return [[generator.randrange(VOCAB) for _ in range(work.tokens)] for _ in range(work.batch)]


def answer(contender: Contender) -> None:
    """Carries out bursts that come as lines of JSON, [work, repetitions, realtime], until there are no more."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        work, repetitions, realtime = json.loads(line)
        with _ahead_of_others(realtime):
            seconds = contender.burst(Work(*work), repetitions)
        print(json.dumps(seconds), flush=True)


@contextmanager
def _ahead_of_others(is_wanted: bool) -> Iterator[None]:
    """All threads of this process go before all else that runs on the machine; needs root."""
    if not is_wanted:
        yield
        return
    _schedule(os.SCHED_RR, REALTIME_PRIORITY)
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def command(arguments: Sequence[str]) -> tuple[Path, int]:
    """The folder and the threads that a contender's process is given."""
    folder, threads = arguments
    return Path(folder), int(threads)
