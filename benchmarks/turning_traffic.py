"""Traffic that turns from prompts to outputs and back: what comes when, and what is made of how it went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import msgspec
import numpy as np
from workload import TokenRange

PROMPT_HEAVY, OUTPUT_HEAVY = "prompt-heavy", "output-heavy"
_SPREAD = 0.25
"""Lengths are drawn evenly from so much below a kind's to so much above."""


class Kind(msgspec.Struct, frozen=True):
    """Requests of about these lengths, `rate_rps` a second."""

    name: str
    rate_rps: float
    prompt_tokens: int
    output_tokens: int


class Sent(msgspec.Struct, frozen=True):
    """One request. at_s: after the first phase begins; what warms up comes before 0. phase: its number, -1 of a
    warm-up."""

    at_s: float
    phase: int
    prompt_tokens: int
    output_tokens: int


class Answer(msgspec.Struct, frozen=True):
    """How one request went. ttft_s, tpot_s: None without a first token, or without a second. error: of one that
    failed; one that was given up at the end, having missed its objectives, has neither times nor error."""

    sent: Sent
    ttft_s: float | None = None
    tpot_s: float | None = None
    error: str = ""

    @property
    def took_s(self) -> float:
        """From its arrival to its last token; without end where there was none."""
        if self.ttft_s is None:
            return math.inf
        return self.ttft_s + (self.tpot_s or 0.0) * (self.sent.output_tokens - 1)


class Objectives(msgspec.Struct, frozen=True):
    """Seconds to the first token, and for each later one."""

    ttft_s: float
    tpot_s: float

    def are_met_by(self, answer: Answer) -> bool:
        return (
            answer.ttft_s is not None
            and answer.ttft_s <= self.ttft_s
            and (answer.tpot_s is None or answer.tpot_s <= self.tpot_s)
        )


class RoleChange(msgspec.Struct, frozen=True):
    """A worker was told to change. at_s: after the first phase began."""

    at_s: float
    worker: str
    role: str
    reason: str


class Run(msgspec.Struct, frozen=True):
    """What one cluster did. decisions: of the planner, as the event log tells them, with `at_s` for `time`."""

    name: str
    answers: list[Answer]
    decisions: list[dict[str, Any]]

    def role_changes(self) -> list[RoleChange]:
        return [
            RoleChange(decision["at_s"], action["worker"], action["role"], decision["reason"])
            for decision in self.decisions
            for action in decision["actions"]
        ]

    def good(self, phase: int, objectives: Objectives) -> int:
        return sum(a.sent.phase == phase and objectives.are_met_by(a) for a in self.answers)

    def sent(self, phase: int) -> int:
        return sum(answer.sent.phase == phase for answer in self.answers)

    @property
    def failed(self) -> int:
        return sum(bool(answer.error) for answer in self.answers)


def traffic(kinds: Sequence[Kind], phase_s: float, warm_up_s: float, seed: int) -> list[Sent]:
    """Phases of these kinds, one after the other, after a warm-up of the first kind. Equal kinds get equal requests
    at equal times of their phases."""
    warm_up = _arrivals(kinds[0], -warm_up_s, warm_up_s, -1, seed + 1)
    phases = [_arrivals(kind, number * phase_s, phase_s, number, seed) for number, kind in enumerate(kinds)]
    return [*warm_up, *(sent for phase in phases for sent in phase)]


def _arrivals(kind: Kind, from_s: float, duration_s: float, phase: int, seed: int) -> list[Sent]:
    """A Poisson process."""
    rng = np.random.default_rng([seed, *kind.name.encode()])
    at_s = rng.exponential(1 / kind.rate_rps, int(2 * kind.rate_rps * duration_s) + 20).cumsum()
    prompts, outputs = (_around(tokens) for tokens in (kind.prompt_tokens, kind.output_tokens))
    return [
        Sent(from_s + float(at), phase, prompts.draw(rng), outputs.draw(rng))
        for at in at_s[at_s < duration_s]
    ]


def _around(tokens: int) -> TokenRange:
    return TokenRange(max(1, round((1 - _SPREAD) * tokens)), max(1, round((1 + _SPREAD) * tokens)))


def soonest_return_s(changes: Sequence[RoleChange]) -> float | None:
    """The shortest time from a role change to one that goes the other way; None where none does."""
    return min(
        (
            later.at_s - change.at_s
            for change, later in product(changes, changes)
            if later.role != change.role and later.at_s >= change.at_s
        ),
        default=None,
    )


def good_by_time(
    run: Run, bin_s: float, objectives: Objectives
) -> tuple[list[float], list[float], list[float]]:
    """Middles of bins of `bin_s`, and requests a second of those sent in each: all, and the good ones."""
    measured = [answer for answer in run.answers if answer.sent.at_s >= 0]
    bins = 1 + int(max(answer.sent.at_s for answer in measured) // bin_s)
    edges = bin_s * np.arange(bins + 1)
    chosen = (measured, [answer for answer in measured if objectives.are_met_by(answer)])
    counts = [np.histogram([answer.sent.at_s for answer in those], edges)[0] for those in chosen]
    middles: list[float] = (edges[:-1] + bin_s / 2).tolist()
    sent, good = ((count / bin_s).tolist() for count in counts)
    return middles, sent, good
