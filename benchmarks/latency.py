"""From the outcomes of requests to the figures that serving is judged by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from rows import Row

PERCENTILES = (50, 90, 99)
ATTAINMENT_TARGET_PERCENT = 90.0


@dataclass(slots=True)
class Outcome:
    """What happened to one request. Times are seconds on `time.perf_counter`.

    text_at_s: when each piece of text arrived. error: why it failed, None where it ended as it should.
    Token counts are the server's own, from `usage`; without one, each piece of text counts as a token.
    """

    sent_at_s: float = 0.0
    ended_at_s: float = 0.0
    text_at_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    has_usage: bool = False
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, seconds; None where no text came."""
        return self.text_at_s[0] - self.sent_at_s if self.text_at_s else None

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first, seconds; None with fewer than two tokens."""
        if not self.text_at_s or self.output_tokens < 2:
            return None
        return (self.text_at_s[-1] - self.text_at_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: seconds between consecutive pieces of text."""
        return [later - earlier for earlier, later in pairwise(self.text_at_s)]


@dataclass(frozen=True, slots=True)
class Objectives:
    """Upper limits in seconds; None is no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def are_set(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None

    def are_met_by(self, outcome: Outcome) -> bool:
        """A failed request meets nothing; one too short to have a TPOT has no TPOT to miss."""
        if outcome.error is not None or outcome.ttft_s is None:
            return False
        in_ttft = self.ttft_s is None or outcome.ttft_s <= self.ttft_s
        in_tpot = self.tpot_s is None or outcome.tpot_s is None or outcome.tpot_s <= self.tpot_s
        return in_ttft and in_tpot


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` % of `values` lie, linear between neighbours; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def summarize(outcomes: Sequence[Outcome], objectives: Objectives) -> list[Row]:
    """The figures of one replay. Latencies are over completed requests, attainment is over all of them."""
    completed = [outcome for outcome in outcomes if outcome.error is None]
    failed = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    sent = [outcome for outcome in outcomes if outcome.ended_at_s]
    duration_s = max((o.ended_at_s for o in sent), default=0.0) - min(
        (o.sent_at_s for o in sent), default=0.0
    )
    rows = [
        Row(name="requests_completed", value=len(completed), unit="requests"),
        Row(name="requests_failed", value=failed.total(), unit="requests", target=0.0),
        *(Row(name=f"failed: {error}", value=n, unit="requests") for error, n in failed.most_common()),
        Row(name="duration", value=duration_s, unit="s"),
        *_throughput(completed, duration_s),
        *_latency("ttft", [o.ttft_s for o in completed if o.ttft_s is not None], objectives.ttft_s),
        *_latency("tpot", [o.tpot_s for o in completed if o.tpot_s is not None], objectives.tpot_s),
        *_latency("itl", [gap for o in completed for gap in o.itl_s], None),
        *_latency("e2e", [o.ended_at_s - o.sent_at_s for o in completed], None),
    ]
    if objectives.are_set():
        met = sum(objectives.are_met_by(outcome) for outcome in outcomes)
        attainment = Row(
            name="objectives_met",
            value=100 * met / len(outcomes) if outcomes else None,
            unit="%",
            target=ATTAINMENT_TARGET_PERCENT,
        )
        rows += [attainment, Row(name="goodput", value=_per_second(met, duration_s), unit="requests/s")]
    return rows


def _throughput(completed: Sequence[Outcome], duration_s: float) -> list[Row]:
    prompt = sum(outcome.prompt_tokens for outcome in completed)
    output = sum(outcome.output_tokens for outcome in completed)
    return [
        Row(name="prompt_tokens", value=prompt, unit="tokens"),
        Row(name="cached_prompt_tokens", value=sum(o.cached_tokens for o in completed), unit="tokens"),
        Row(name="output_tokens", value=output, unit="tokens"),
        Row(name="request_throughput", value=_per_second(len(completed), duration_s), unit="requests/s"),
        Row(name="output_throughput", value=_per_second(output, duration_s), unit="tokens/s"),
        Row(name="total_throughput", value=_per_second(prompt + output, duration_s), unit="tokens/s"),
    ]


def _latency(name: str, values_s: list[float], objective_s: float | None) -> list[Row]:
    """Percentiles in ms; the objective belongs to the share of requests that goodput asks for."""
    rows = []
    for percent in PERCENTILES:
        value_s = percentile(values_s, percent)
        is_judged = objective_s is not None and percent == ATTAINMENT_TARGET_PERCENT
        rows.append(
            Row(
                name=f"{name}_p{percent}",
                value=None if value_s is None else value_s * 1000,
                unit="ms",
                target=objective_s * 1000 if is_judged and objective_s is not None else None,
            )
        )
    return rows


def _per_second(count: int, duration_s: float) -> float | None:
    return count / duration_s if duration_s > 0 else None
