"""Any order of events over both schedulers: nothing leaks, nothing is told twice, no token is ever wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from model_folders import prompt_ids
from stepped_pair import GREEDY, Pair, Ride, make_engine, undisturbed

from baton.decode.limits import DecodeLimits
from baton.engine.engine import Engine
from baton.kvtransfer.base import TransferResult, TransferState
from baton.kvtransfer.errors import PeerLost
from baton.prefill.scheduler import PrefillLimits

PREFILL = PrefillLimits(chunk_tokens=10, max_waiting=3)
DECODE = DecodeLimits(max_running=4, max_asking=3, prefill_chunk_tokens=8)
KV_BLOCKS = 16


@pytest.fixture(scope="module")
def engines(model_folder: Callable[[str], Path]) -> Iterator[list[Engine]]:
    built = [make_engine(model_folder("llama"), blocks) for blocks in (KV_BLOCKS, KV_BLOCKS, 64)]
    yield built
    for engine in built:
        engine.close()


class Schedulers(RuleBasedStateMachine):
    """The router's acts, the engines' steps and the failures come in any order that hypothesis finds."""

    engines: list[Engine]
    expected: dict[tuple[object, ...], list[list[int]]]
    rides = Bundle("rides")

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(self.engines[0], self.engines[1], PREFILL, DECODE)
        self.all: list[Ride] = []

    @initialize(overlaps=st.booleans())
    def decode(self, overlaps: bool) -> None:
        self.pair.decode_engine.overlaps = overlaps

    @rule(
        target=rides,
        prompt=st.tuples(st.integers(1, 30), st.integers(0, 2)),
        choices=st.integers(1, 3),
        max_tokens=st.integers(1, 12),
        temperature=st.sampled_from([0.0, 1.0]),
        is_local=st.booleans(),
        router=st.sampled_from(["one router", "another"]),
    )
    def arrive(
        self,
        prompt: tuple[int, int],
        choices: int,
        max_tokens: int,
        temperature: float,
        is_local: bool,
        router: str,
    ) -> Ride:
        sampling = replace(GREEDY, max_tokens=max_tokens, temperature=temperature, seed=17)
        ride = self.pair.ride(prompt_ids(*prompt), sampling, router, is_local, n=choices)
        self.all.append(ride)
        self.pair.submit(ride)
        return ride

    @rule(ride=rides)
    def let_the_router_act(self, ride: Ride) -> None:
        if not ride.is_released:
            self.pair.advance(ride)

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.pair.step()

    @rule()
    def wait_for_the_transfer_threads(self) -> None:
        self.pair.drain(wait_s=0.002)

    @rule(ride=rides)
    def submit_again(self, ride: Ride) -> None:
        """A duplicate of one that is still here has to be refused; one of a request that is over is a new one."""
        if not ride.has_ended and not ride.work.is_local and not ride.handed_off:
            twin = Ride(self.pair, ride.request, "router", is_local=False)
            self.pair.prefill.submit(twin.prompt)
            assert len(twin.prefill_failures) == 1

    @rule(ride=rides)
    def release(self, ride: Ride) -> None:
        self.pair.release(ride)

    @rule(ride=rides, choice=st.integers(0, 2))
    def release_a_choice(self, ride: Ride, choice: int) -> None:
        """A choice whose tokens have begun is stopped; the whole request is then as good as released."""
        if choice < ride.request.n and ride.outputs[choice]:
            self.pair.decode.release(ride.request.request_id, [choice])
            self.pair.release(ride)

    @rule(ride=rides)
    def expire(self, ride: Ride) -> None:
        ride.prompt.arrived_at_s -= ride.request.deadline_s
        ride.work.arrived_at_s -= ride.request.deadline_s

    @rule(ride=rides)
    def lose_the_peer(self, ride: Ride) -> None:
        """The sender's transport reports that the receiver is gone."""
        session = ride.prompt.session
        if session is not None:
            session.fence("the test cuts the line")
            lost = TransferResult(b"", TransferState.FAILED, 0, 0, PeerLost("cut"))
            self.pair.prefill.transfer_ended(ride.prompt, lost)

    @rule(router=st.sampled_from(["one router", "another"]))
    def lose_a_router(self, router: str) -> None:
        for ride in self.all:
            if ride.work.router_id == router:
                ride.is_released = True
                self.pair.prefill.cancel(ride.prompt)
        self.pair.decode.release_router(router)

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        for scheduler in (self.pair.prefill, self.pair.decode):
            blocks = scheduler.load().kv_blocks
            assert blocks.free + blocks.cached + blocks.used + blocks.reserved == blocks.total
            assert min(blocks.free, blocks.cached, blocks.used, blocks.reserved) >= 0

    @invariant()
    def nothing_is_told_twice(self) -> None:
        for ride in self.all:
            endings = len(ride.prefill_failures) + len(ride.handed_off)
            assert endings <= 1
            assert len(ride.grants) <= 1
            assert len(ride.decode_failures) <= 1
            assert len(ride.scheduled) <= 1

    def teardown(self) -> None:
        rides = [ride for ride in self.all if not ride.is_released]
        try:
            self.pair.run_until(
                lambda: all(ride.has_ended for ride in rides) and self.pair.is_at_baseline, rides
            )
            for ride in self.all:
                self._check_tokens(ride)
        finally:
            self.pair.close()

    def _check_tokens(self, ride: Ride) -> None:
        asked = ride.request
        key = (asked.token_ids, asked.n, asked.sampling)
        if key not in self.expected:
            self.expected[key] = undisturbed(self.engines[2], asked)
        for got, expected in zip(ride.tokens, self.expected[key], strict=True):
            assert got == expected[: len(got)]
            assert ride.has_ended
            if not ride.failures and not ride.is_released:
                assert got == expected


def test_any_order_of_events_leaves_both_pools_at_their_baseline_and_every_token_right(
    engines: list[Engine],
) -> None:
    Machine = type("Machine", (Schedulers,), {"engines": engines, "expected": {}})
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
