"""Where a batch runs out of places, decoding is what requests wait for: nothing is computed beside it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import WorkerProfile
from baton.router.candidates import Candidate
from baton.router.fleet_columns import LOCAL_MEMORY_S
from baton.router.placement import Placement, PrefillSite, place
from baton.router.policies import load_policy
from baton.router.snapshot import Demand, Snapshot

PROFILE = WorkerProfile(prefill_tokens_per_s=10_000, decode_step_s=0.01, decode_s_per_sequence=1e-5)
BUSY = Candidate("p0", queued_tokens=20_000, sequences=50, profile=PROFILE)
DEMAND = Demand(400, 25, ttft_s=2.0, tpot_s=0.05)
POLICY = load_policy("predicted")


def site(sequences: int, max_running: float, local_prefill_s: float = 0.0) -> PrefillSite:
    """Of a prompt for which prefill is late, beside a batch whose steps are far from late."""
    decode = Candidate(
        "d0",
        sequences=sequences,
        max_running=max_running,
        local_prefill_s=local_prefill_s,
        available_blocks=10_000,
        profile=PROFILE,
    )
    placement = place(Snapshot.of([BUSY], [decode]), DEMAND, POLICY)
    assert isinstance(placement, Placement)
    return placement.site


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [(50, PrefillSite.LOCAL_PREDICTED), (70, PrefillSite.LOCAL_PREDICTED), (80, PrefillSite.REMOTE)],
)
def test_a_prompt_is_computed_beside_a_batch_with_places_to_spare_and_not_where_they_run_out(
    sequences: int, expected: PrefillSite
) -> None:
    assert site(sequences, max_running=100) is expected


def test_prompts_computed_of_late_count_by_the_places_that_longer_answers_hold() -> None:
    assert site(60, max_running=100) is PrefillSite.LOCAL_PREDICTED
    assert site(60, max_running=100, local_prefill_s=0.3 * LOCAL_MEMORY_S) is PrefillSite.REMOTE


@pytest.mark.parametrize("max_running", [1, 2, math.inf])
def test_an_empty_batch_however_small_has_places_to_spare(max_running: float) -> None:
    assert site(0, max_running) is PrefillSite.LOCAL_PREDICTED


@settings(deadline=None, max_examples=60)
@given(sequences=st.integers(0, 300), places=st.integers(1, 400), more=st.integers(0, 400))
def test_a_prompt_that_is_computed_beside_a_batch_would_be_with_more_places_too(
    sequences: int, places: int, more: int
) -> None:
    if site(sequences, places) is PrefillSite.LOCAL_PREDICTED:
        assert site(sequences, places + more) is PrefillSite.LOCAL_PREDICTED
