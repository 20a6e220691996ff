"""Placement policies by name, against one another and each against its own rule."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.errors import ConfigError
from baton.router.candidates import Candidate
from baton.router.placement import Placement, place
from baton.router.policies import POLICIES, load_policy
from baton.router.snapshot import Demand, Snapshot

candidates = st.builds(
    Candidate,
    worker_id=st.text("abcdef", min_size=1, max_size=3),
    queued_tokens=st.integers(0, 5000),
    sequences=st.integers(0, 50),
    available_blocks=st.integers(0, 200),
    cached_tokens=st.integers(0, 400),
)
pools = st.lists(candidates, max_size=5, unique_by=lambda candidate: candidate.worker_id)
demands = st.builds(
    Demand,
    prompt_tokens=st.just(400),
    blocks=st.just(25),
    session_key=st.none() | st.text(),
    ordinal=st.integers(0, 10**6),
    seed=st.integers(0, 2**63),
)


def pair(name: str, snapshot: Snapshot, demand: Demand) -> tuple[str | None, str]:
    placement = place(snapshot, demand, load_policy(name))
    assert isinstance(placement, Placement)
    return placement.prefill, placement.decode


def workers(count: int, sequences: int = 0, cached_tokens: int = 0) -> list[Candidate]:
    return [
        Candidate(f"w{number}", sequences=sequences, available_blocks=100, cached_tokens=cached_tokens)
        for number in range(count)
    ]


@settings(deadline=None)
@given(prefill=pools, decode=pools.filter(bool), demand=demands)
def test_every_policy_chooses_among_the_candidates_whatever_their_order(
    prefill: list[Candidate], decode: list[Candidate], demand: Demand
) -> None:
    for name in POLICIES:
        chosen = pair(name, Snapshot.of(prefill, decode), demand)
        assert chosen[0] in {candidate.worker_id for candidate in prefill} | {None}, name
        assert chosen[1] in {candidate.worker_id for candidate in decode}, name
        assert pair(name, Snapshot.of(prefill[::-1], decode[::-1]), demand) == chosen, name


def test_an_unknown_policy_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'fastest'.*predicted, prefix, session, least_loaded"):
        load_policy("fastest")


def test_round_robin_gives_each_worker_its_turn() -> None:
    snapshot = Snapshot.of(workers(4), workers(4))
    turns = Counter(pair("round_robin", snapshot, Demand(10, 1, ordinal=number)) for number in range(12))
    assert turns == Counter({(f"w{number}", f"w{number}"): 3 for number in range(4)})


def test_least_loaded_goes_by_what_keeps_each_role_busy() -> None:
    prefill = [Candidate("p0", queued_tokens=10, sequences=9), Candidate("p1", queued_tokens=90)]
    decode = [Candidate("d0", queued_tokens=10, sequences=9), Candidate("d1", queued_tokens=90)]
    assert pair("least_loaded", Snapshot.of(prefill, decode), Demand(10, 1)) == ("p0", "d1")


def test_power_of_two_never_takes_the_most_loaded_and_draws_by_its_seed() -> None:
    loaded = [Candidate(f"w{number}", queued_tokens=number, sequences=number) for number in range(5)]
    snapshot = Snapshot.of(loaded, loaded)
    runs = [
        [pair("power_of_two", snapshot, Demand(10, 1, ordinal=number, seed=seed)) for number in range(300)]
        for seed in (1, 1, 2)
    ]
    assert {worker for drawn in runs[0] for worker in drawn} == {"w0", "w1", "w2", "w3"}
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_session_keeps_both_workers_of_a_session_and_spreads_sessions() -> None:
    snapshot = Snapshot.of(workers(6, sequences=3), workers(6, sequences=3))
    once, again = (
        [pair("session", snapshot, Demand(10, 1, session_key=f"s{s}", ordinal=turn)) for s in range(60)]
        for turn in (1, 2)
    )
    assert once == again
    assert {decode for _, decode in once} == {f"w{number}" for number in range(6)}


def test_prefix_prefers_the_most_cached_and_then_the_less_loaded() -> None:
    pool = [
        Candidate("a", cached_tokens=64, queued_tokens=9, sequences=9),
        Candidate("b", cached_tokens=64, queued_tokens=5, sequences=5),
        Candidate("c", cached_tokens=32),
    ]
    assert pair("prefix", Snapshot.of(pool, pool), Demand(400, 25)) == ("b", "b")


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_almost_cached_is_prefilled_locally_under_every_policy(name: str) -> None:
    snapshot = Snapshot.of(workers(1), workers(1, cached_tokens=384))
    assert pair(name, snapshot, Demand(400, 25, local_prefill_tokens=64)) == (None, "w0")
