import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from baton.router.affinity import LOAD_BOUND, worker_keys
from baton.router.affinity import owner as index_of_owner

loads = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 50), min_size=1, max_size=20)


def owner(session: str, worker_loads: dict[str, int]) -> str:
    ids = list(worker_loads)
    carried = np.array(list(worker_loads.values()), np.float64)
    return ids[index_of_owner(session, worker_keys(ids), carried)]


@given(st.text(), loads)
def test_the_owner_never_exceeds_the_bound(session: str, worker_loads: dict[str, int]) -> None:
    chosen = owner(session, worker_loads)
    mean = (sum(worker_loads.values()) + 1) / len(worker_loads)
    assert worker_loads[chosen] + 1 <= math.ceil(LOAD_BOUND * mean)


@given(st.text(), loads)
def test_the_owner_does_not_depend_on_the_order_of_workers(
    session: str, worker_loads: dict[str, int]
) -> None:
    assert owner(session, worker_loads) == owner(session, dict(reversed(worker_loads.items())))


@given(st.text(), st.integers(1, 20), st.integers(0, 50))
def test_evenly_loaded_workers_still_take_a_session(session: str, workers: int, load: int) -> None:
    evenly = {f"w{number}": load for number in range(workers)}
    assert owner(session, evenly) in evenly


def test_a_session_stays_when_another_worker_leaves() -> None:
    idle = {f"w{i}": 0 for i in range(10)}
    sessions = [f"s{i}" for i in range(500)]
    before = {session: owner(session, idle) for session in sessions}
    del idle["w3"]
    moved = [s for s in sessions if before[s] != "w3" and owner(s, idle) != before[s]]
    assert moved == []


def test_one_overloaded_worker_moves_only_its_own_sessions() -> None:
    idle = {f"w{i}": 4 for i in range(8)}
    sessions = [f"s{i}" for i in range(400)]
    before = {session: owner(session, idle) for session in sessions}
    hot = {**idle, "w2": 40}
    for session in sessions:
        after = owner(session, hot)
        assert after != "w2"
        assert after == before[session] or before[session] == "w2"


def test_sessions_spread_over_all_workers() -> None:
    idle = {f"w{i}": 0 for i in range(8)}
    chosen = [owner(f"session-{i}", idle) for i in range(2000)]
    assert set(chosen) == set(idle)
    assert max(map(chosen.count, idle)) < 2.5 * len(chosen) / len(idle)
