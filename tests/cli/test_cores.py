"""How `baton up` shares the cores out, and which lists of cores a worker takes."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.cli.cores import available_cores, read_cores, share_out
from baton.errors import ConfigError

WORKERS = st.dictionaries(
    st.sampled_from(["prefill-0", "prefill-1", "decode-0"]), st.integers(1, 4), min_size=1
)


@given(st.integers(1, 64), WORKERS)
def test_no_two_workers_share_a_core_and_each_process_has_as_many(
    count: int, processes: dict[str, int]
) -> None:
    shares = share_out(range(count), processes)
    if count < sum(processes.values()):
        assert shares == {}
        return
    own = {worker: [int(core) for core in text.split(",")] for worker, text in shares.items()}
    given_out = [core for cores in own.values() for core in cores]
    assert len(given_out) == len(set(given_out)) <= count
    assert {len(own[worker]) / processes[worker] for worker in processes} == {
        count // sum(processes.values())
    }


def test_a_worker_reads_what_was_shared_out() -> None:
    cores = available_cores()
    assert read_cores(share_out(cores, {"decode-0": 1})["decode-0"]) == set(cores) == os.sched_getaffinity(0)


def test_ranges_and_single_cores_are_one_set() -> None:
    first = available_cores()[0]
    assert read_cores(f"{first},5000-5002") == {first, 5000, 5001, 5002}


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "0;1", "1.5", "60000-60001", "3-1"])
def test_what_is_no_list_of_cores_that_are_there_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_cores(text)
    assert raised.value.field == "cpus"
