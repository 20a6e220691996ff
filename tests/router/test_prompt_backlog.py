"""Requests whose prompts still queue for prefill make no streams late yet, and crowd no decode worker."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.fleet import WorkerProfile
from baton.router.affinity import LOAD_BOUND
from baton.router.candidates import Candidate, Candidates
from baton.router.placement import Placement, place
from baton.router.policies import load_policy
from baton.router.snapshot import Demand, Disaggregation, Snapshot

PROFILE = WorkerProfile(prefill_tokens_per_s=1000, decode_step_s=0.02, decode_s_per_sequence=0.001)
DEMAND = Demand(400, 25, ttft_s=2.0, tpot_s=0.05, disaggregation=Disaggregation.ALWAYS)
POLICY = load_policy("predicted")


def fleet(sequences: list[int], queued: list[int], max_running: float = math.inf) -> list[Candidate]:
    return [
        Candidate(
            f"d{number}",
            sequences=streams + waiting,
            queued_sequences=waiting,
            available_blocks=10_000,
            max_running=max_running,
            profile=PROFILE,
        )
        for number, (streams, waiting) in enumerate(zip(sequences, queued, strict=True))
    ]


def placed(decode: list[Candidate], demand: Demand) -> int:
    prefill = Candidate("p0", queued_tokens=90_000, sequences=200, profile=PROFILE)
    placement = place(Snapshot.of([prefill], decode), demand, POLICY)
    assert isinstance(placement, Placement)
    return [worker.worker_id for worker in decode].index(placement.decode)


@settings(deadline=None, max_examples=40)
@given(
    streams=st.lists(st.integers(0, 20), min_size=2, max_size=5),
    backlog=st.integers(60, 300),
    has_sessions=st.booleans(),
    max_running=st.sampled_from([math.inf, 32]),
)
def test_a_backlog_of_prompts_is_spread_over_workers_whose_streams_are_in_time(
    streams: list[int], backlog: int, has_sessions: bool, max_running: float
) -> None:
    queued = [backlog - own + (number == 1) for number, own in enumerate(streams)]
    count = 20 * len(streams)
    for ordinal in range(count):
        key = f"session {ordinal}" if has_sessions else None
        demand = replace(DEMAND, session_key=key, ordinal=ordinal)
        queued[placed(fleet(streams, queued, max_running), demand)] += 1
    totals = [own + waiting for own, waiting in zip(streams, queued, strict=True)]
    assert max(totals) <= math.ceil(LOAD_BOUND * sum(totals) / len(totals))


@given(late=st.integers(35, 200), queued=st.integers(60, 300))
def test_where_streams_are_late_already_one_worker_is_furthest_beyond(late: int, queued: int) -> None:
    decode = fleet([late, 0, 0], [queued, queued, queued])
    assert placed(decode, DEMAND) == 0


def test_what_queues_takes_its_share_of_the_context_with_it() -> None:
    pool = Candidates.of(
        [Candidate("d0", sequences=8, queued_sequences=6, context_tokens=800), Candidate("d1")]
    )
    present = pool.without_queued()
    assert present.sequences.tolist() == [2, 0]
    assert present.context_tokens.tolist() == [200, 0]
    assert pool.sequences.tolist() == [8, 0]
