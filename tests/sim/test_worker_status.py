"""A simulated worker's status is that of a live one with the same sequences."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from baton.block_hash import HASH_BYTES
from baton.engine.step_room import ChunkLimit
from baton.fleet import Member, ModelInfo, Role, WorkerInfo, WorkerLoad, WorkerState
from baton.router.elastic import status_of as live_status_of
from baton.sim.clock import Clock
from baton.sim.decode_worker import DecodeWorker
from baton.sim.elastic import status_of
from baton.sim.fleet_file import HardwareProfile, Pool
from baton.sim.gaps import Gaps
from baton.sim.prefill_worker import PrefillWorker
from baton.sim.ride import Ride
from baton.sim.sim_worker import Setup
from baton.sim.workload import SimRequest

BLOCK, PREFIX_TOKENS, PROMPT_TOKENS, MOST_RUNNING = 16, 8000, 8016, 64
HARDWARE = HardwareProfile(
    prefill_tokens_per_s=4000.0,
    decode_step_s=0.02,
    copy_bytes_per_s=1e8,
    kv_bytes_per_token=1000.0,
    kv_tokens=100_000,
)
LIMIT = ChunkLimit(1024, 0.0, HARDWARE.speeds)


class Handoffs:
    """Whoever is granted memory waits here for its blocks."""

    def __init__(self) -> None:
        self.granted_rides: list[Ride] = []

    def granted(self, ride: Ride) -> None:
        self.granted_rides.append(ride)

    def scheduled(self, ride: Ride) -> None: ...

    def chunk_computed(self, ride: Ride) -> None: ...

    def first_token(self, ride: Ride) -> None: ...

    def ended(self, ride: Ride) -> None: ...


def sharing(number: int, prefill: PrefillWorker) -> Ride:
    """A prompt of the shared prefix and one block of its own."""
    shared = [block.to_bytes(HASH_BYTES, "big") for block in range(PREFIX_TOKENS // BLOCK)]
    own = (10_000 + number).to_bytes(HASH_BYTES, "big")
    request = SimRequest(number, 0.0, PROMPT_TOKENS, 50, (*shared, own))
    return Ride(request, 0.0, prefill=prefill, output_tokens=1)


def live(worker: DecodeWorker) -> Member:
    """What a live worker with that pool announces."""
    load = WorkerLoad(worker.num_running, worker.num_waiting, 0, worker.blocks.usage(), busy_s=worker.busy_s)
    info = WorkerInfo(
        worker.worker_id,
        b"",
        Role.DECODE,
        "127.0.0.1:1",
        1,
        ModelInfo("m", "f", 1000, 100),
        b"",
        BLOCK,
        worker.speeds,
        "0",
        max_running=MOST_RUNNING,
    )
    return Member(info, WorkerState.READY, load)


def test_kv_that_runs_is_told_apart_from_what_is_promised_though_prompts_share_a_prefix() -> None:
    clock, handoffs = Clock(), Handoffs()
    pools = (Pool(name, role, 1, HARDWARE, 1.0) for name, role in (("p", Role.PREFILL), ("d", Role.DECODE)))
    setups = (Setup(f"{pool.name}0", pool, BLOCK, clock, MOST_RUNNING, LIMIT, seed=0) for pool in pools)
    of_prefill, of_decode = setups
    prefill = PrefillWorker(of_prefill, handoffs)
    worker = DecodeWorker(of_decode, Gaps(), handoffs)
    rides = [sharing(number, prefill) for number in range(12)]
    worker.ask(rides[0])
    worker.land(rides[0])
    for ride in rides[1:]:
        worker.ask(ride)
    for ride in rides[1:4]:
        clock.at(0.03, partial(worker.land, ride))
    statuses = []

    def look() -> None:
        status = status_of(worker)
        assert status == live_status_of(live(worker), 0.0, 0.0)
        statuses.append(status)

    clock.at(0.05, look)
    for ride in rides[4:]:
        clock.at(0.06, partial(worker.release, ride))
    clock.at(0.07, look)
    clock.run()
    during, after = statuses
    assert (during.running, during.waiting, len(handoffs.granted_rides)) == (4, 8, 12)
    own_tokens = 4 * 2 * BLOCK  # a block of the prompt and one of the answer
    assert during.running_tokens == PREFIX_TOKENS + own_tokens
    assert during.held_tokens == during.running_tokens + 8 * BLOCK
    assert after == replace(during, waiting=0, held_tokens=during.running_tokens, busy_s=after.busy_s)
