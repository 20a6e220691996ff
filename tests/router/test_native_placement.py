"""Native code places as the columns do: the same workers and, to the last bit, the same predictions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baton.fleet import WorkerProfile
from baton.router.candidates import Candidate, Candidates, Column
from baton.router.compiled import is_native_built, native
from baton.router.policies import load_policy
from baton.router.policies.predicted import choose_by_columns
from baton.router.prediction import predict, predict_rows
from baton.router.snapshot import Demand, Disaggregation, Snapshot

pytestmark = pytest.mark.skipif(not is_native_built(), reason="the router's native code is not built here")

PREDICTED = load_policy("predicted")
few = st.sampled_from  # equal figures are frequent, so that ties are

profiles = st.builds(
    WorkerProfile,
    prefill_tokens_per_s=few([0.0, 1000.0, 30_800.0]),
    decode_step_s=few([0.0, 0.005, 0.02]),
    copy_bytes_per_s=few([0.0, 1e6, 35e9]),
    prefill_s_per_pair=few([0.0, 1.06e-9, 1e-6]),
    decode_s_per_sequence=few([0.0, 3.25e-5, 0.001]),
    decode_s_per_context_token=few([0.0, 4.55e-8, 1e-5]),
    prefill_pass_s=few([0.0, 0.003]),
    handoff_latency_s=few([0.0, 0.002]),
    prefill_chunk_tokens=few([0.0, 512.0]),
    prefill_chunk_s=few([0.0, 0.012, 0.1]),
    same_host_bytes_per_s=few([0.0, 9e9]),
    same_host_latency_s=few([0.0, 0.0005]),
)
candidates = st.builds(
    Candidate,
    worker_id=st.text("abcdef", min_size=1, max_size=3),
    queued_tokens=few([0, 0, 900, 12_345]),
    queued_s=few([0.0, 0.0, 0.7]) | st.floats(0, 100),
    sequences=few([0, 0, 3]) | st.integers(0, 300),
    context_tokens=few([0, 50_000]) | st.integers(0, 10**6),
    available_blocks=few([0, 5, 10**6]),
    queued_sequences=few([0, 0, 3, 250]),
    cached_tokens=few([0, 0, 320, 384]),
    local_prefill_s=few([0.0, 0.0, 0.3]) | st.floats(0, 10),
    kv_bytes_per_token=few([0.0, 131_072.0]),
    max_running=few([math.inf, 0, 64]),
    host=few(["", "here", "there"]),
    profile=profiles,
)
pools = st.lists(candidates, max_size=7, unique_by=lambda candidate: candidate.worker_id)
snapshots = st.builds(Snapshot.of, prefill=pools, decode=pools.filter(bool))
demands = st.builds(
    Demand,
    prompt_tokens=few([1, 400, 8000]),
    blocks=few([1, 25, 500]),
    choices=st.integers(1, 4),
    session_key=st.none() | st.text(),
    waited_s=few([0.0, 0.0, 0.3, 60.0]),
    ttft_s=st.none() | few([0.2, 2.0, 100.0]),
    tpot_s=st.none() | few([0.001, 0.05, 0.2, 10.0]),
    disaggregation=few(list(Disaggregation)),
    ordinal=st.integers(0, 2**63),
)


@settings(deadline=None, max_examples=300)
@given(snapshot=snapshots, demand=demands)
def test_native_code_chooses_the_same_workers(snapshot: Snapshot, demand: Demand) -> None:
    choice = PREDICTED.choose(snapshot, demand)
    assert (choice.prefill, choice.decode) == choose_by_columns(snapshot, demand)


@settings(deadline=None, max_examples=200)
@given(snapshot=snapshots, demand=demands, data=st.data())
def test_native_code_predicts_the_same_figures(
    snapshot: Snapshot, demand: Demand, data: st.DataObject
) -> None:
    decode = data.draw(st.integers(0, len(snapshot.decode) - 1))
    prefill = (
        data.draw(st.none() | st.integers(0, len(snapshot.prefill) - 1)) if len(snapshot.prefill) else None
    )
    row = None if prefill is None else snapshot.prefill.row(prefill)
    assert predict(snapshot, prefill, decode, demand) == predict_rows(
        row, snapshot.decode.row(decode), demand
    )


def test_a_pool_that_lacks_some_workers_is_still_read_as_it_is() -> None:
    pool = [Candidate(f"w{number}", sequences=9 - number) for number in range(9)]
    whole = Snapshot.of(pool, pool)
    lacking = Snapshot(
        whole.prefill.without(frozenset({"w8"})), whole.decode.without(frozenset({"w8", "w2"}))
    )
    choice = PREDICTED.choose(lacking, Demand(100, 7))
    assert lacking.decode.worker_ids[choice.decode] == "w7"


def test_columns_that_do_not_fit_are_refused() -> None:
    decode = Snapshot.of([], [Candidate("w")]).decode

    def predicted(figures: Column, keys: NDArray[np.uint64], index: int) -> None:
        native.predict(figures, keys, index, figures, keys, index, 1, 1, 1)

    with pytest.raises(ValueError, match="are no 27 figures of 2 workers"):
        predicted(decode.figures, np.zeros(2, np.uint64), 0)
    with pytest.raises(IndexError, match="worker 1 of 1"):
        predicted(decode.figures, decode.keys, 1)
    with pytest.raises(ValueError, match="not C-contiguous"):
        predicted(np.zeros((2, 25)).T, np.zeros(2, np.uint64), 0)


@settings(deadline=None)
@given(matched=st.lists(st.integers(0, 200_000), min_size=1, max_size=9), data=st.data())
def test_native_code_credits_whole_blocks_of_each_worker_as_the_columns_do(
    matched: list[int], data: st.DataObject
) -> None:
    slots = data.draw(st.lists(st.integers(0, len(matched) - 1), max_size=9))
    blocks = [data.draw(st.integers(1, 300)) for _ in slots]
    pool = Candidates.of(Candidate(f"w{n}", block_tokens=tokens) for n, tokens in enumerate(blocks))
    pool.write_cached(np.array(matched, np.int32), np.array(slots, np.int64))
    assert pool.cached_tokens.tolist() == [
        matched[slot] // tokens * tokens for slot, tokens in zip(slots, blocks, strict=True)
    ]


def test_a_slot_that_is_not_there_is_refused() -> None:
    pool = Candidates.of([Candidate("w")])
    for slot in (-1, 3):
        with pytest.raises(IndexError, match=f"slot {slot} of 3"):
            pool.write_cached(np.zeros(3, np.int32), np.array([slot], np.int64))
