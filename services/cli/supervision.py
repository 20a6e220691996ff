"""Whether and when a process that has ended starts again. Pure: when it ended so far in, a delay or none out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """max_restarts: of one process within window_s, after which it is given up; with 0 nothing is restarted.
    A process that did not end for window_s is as good as new."""

    max_restarts: int = 5
    window_s: float = 300.0


def delay_after_end(ended_at_s: Sequence[float], limits: RestartLimits, draw: float) -> float | None:
    """Seconds from the last of `ended_at_s` (one process's ends, in order, on any one clock) to its next start;
    None where it is given up. The delay doubles with each end in the window. draw: random, of [0, 1); takes up to
    half of the delay away, lest processes that fell together come back together."""
    ends = recent_ends(ended_at_s, limits)
    if ends > limits.max_restarts:
        return None
    whole_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(ends - 1, 30))
    return whole_s * (1 - draw / 2)


def recent_ends(ended_at_s: Sequence[float], limits: RestartLimits) -> int:
    """How many ends lie in the window that closes with the last one."""
    return sum(ended_at_s[-1] - at_s < limits.window_s for at_s in ended_at_s)
