"""What the serving benchmark makes of the moments at which text came."""

from __future__ import annotations

import pytest
from latency import Objectives, Outcome, percentile, summarize
from rows import Row


def outcome(*text_at_s: float, output_tokens: int = 0, error: str | None = None) -> Outcome:
    return Outcome(
        sent_at_s=10.0,
        ended_at_s=max(text_at_s, default=10.0),
        text_at_s=list(text_at_s),
        output_tokens=output_tokens or len(text_at_s),
        error=error,
    )


def test_percentiles_are_linear_between_neighbours() -> None:
    assert percentile([], 50) is None
    assert percentile([7.0], 99) == 7.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert percentile([float(i) for i in range(101)], 90) == pytest.approx(90.0)


def test_latencies_are_what_their_names_say() -> None:
    one = outcome(10.5, 10.6, 10.9, output_tokens=5)
    assert one.ttft_s == pytest.approx(0.5)
    assert one.tpot_s == pytest.approx(0.4 / 4)
    assert one.itl_s == pytest.approx([0.1, 0.3])
    assert outcome(10.5).tpot_s is None
    assert outcome().ttft_s is None


def test_goodput_counts_what_met_every_objective_over_all_requests() -> None:
    outcomes = [
        outcome(10.1, 10.2, 10.3),
        outcome(10.1, 11.1, 12.0),  # too slow a token
        outcome(10.9, 11.0, 11.1),  # too late a first token
        outcome(10.2),  # has no time per token to miss
        outcome(10.1, 10.2, error="HTTP 500"),
    ]
    rows = {row.name: row for row in summarize(outcomes, Objectives(ttft_s=0.5, tpot_s=0.5))}
    assert rows["objectives_met"] == Row(name="objectives_met", value=40.0, unit="%", target=90.0)
    assert rows["goodput"].value == pytest.approx(2 / 2.0)
    assert rows["ttft_p90"].target == pytest.approx(500.0)
    assert rows["ttft_p50"].target is None
    assert "goodput" not in {row.name for row in summarize(outcomes, Objectives())}
