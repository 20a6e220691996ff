"""The cluster that most tests share, and the check that every test leaves its cluster as it found it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cluster import Cluster

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="session")
def shared_cluster(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    event_log = tmp_path_factory.mktemp("shared") / "events.jsonl"
    with Cluster(model=llama, kv_blocks=1024, disaggregation="always", event_log=event_log) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """One prefill and one decode worker over the Llama folder; modules may put their own in its place."""
    return shared_cluster


@pytest.fixture(autouse=True)
def _everything_is_given_back(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every pool at its baseline, every worker the process that it was, no new shared memory."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    pids = cluster.pids()
    yield
    cluster.wait_for_baseline()
    assert cluster.pids() == pids
    assert not cluster.new_shared_memory()
