"""What a router of the simulated fleet knows of workers that come, change roles and leave."""

from __future__ import annotations

import msgspec
import pytest
from stepped_traffic import BLOCK, fleet

from baton.fleet import Role
from baton.router import prefix_index
from baton.router.policies import DEFAULT_POLICY
from baton.sim.clock import Clock
from baton.sim.gaps import Gaps
from baton.sim.ride import Ride
from baton.sim.sim_fleet import SimFleet
from baton.sim.sim_router import SimRouter
from baton.sim.workload import SimRequest, hash_of

SPEC = msgspec.structs.replace(fleet(1, 2, rules=None), kv_events=True)
REQUEST = SimRequest(0, 0.0, 4 * BLOCK, 2, tuple(hash_of(0, block) for block in range(4)))


class Nobody:
    """Listens to workers that do nothing."""

    def scheduled(self, ride: Ride) -> None: ...

    def granted(self, ride: Ride) -> None: ...

    def chunk_computed(self, ride: Ride) -> None: ...

    def first_token(self, ride: Ride) -> None: ...

    def ended(self, ride: Ride) -> None: ...


@pytest.fixture
def workers() -> SimFleet:
    return SimFleet(SPEC, Clock(), BLOCK, seed=0, gaps=Gaps(), listener=Nobody())


def router_of(workers: SimFleet) -> SimRouter:
    return SimRouter(SPEC, workers.prefill, workers.decode, BLOCK, DEFAULT_POLICY, seed=0)


def test_in_time_there_may_be_more_workers_than_an_index_has_room_for_at_once(
    workers: SimFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_index, "MAX_WORKERS", 4)
    router = router_of(workers)
    for _ in range(6):
        router.place(REQUEST, 0.0)
        workers.stop(next(iter(workers.decode.values())))
        workers.start(Role.DECODE, 0.0)
        workers._clock.run()
    assert router.place(REQUEST, 0.0).decode in workers.decode


def test_a_router_that_comes_late_hears_what_a_worker_caches_that_has_changed_its_role(
    workers: SimFleet,
) -> None:
    early, late = router_of(workers), router_of(workers)
    early.place(REQUEST, 0.0)
    workers.change_role(workers.decode["d-1"], Role.PREFILL)
    late.place(REQUEST, 0.0)
    worker = workers.prefill["d-1"]
    worker.publish(worker.blocks.allocate(4), REQUEST.hashes, REQUEST.prompt_tokens, 0)
    assert [router._index.stored("d-1") for router in (early, late)] == [4, 4]
