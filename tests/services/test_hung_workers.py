"""Workers that are alive and come to nothing: what they have goes on elsewhere, if there is an elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from mini_fleet import WAIT_S, FleetOfTest, Script, until
from model_folders import prompt_ids
from routed_fleet import Router, routed
from stepped_pair import request

from baton.fleet import Fleet, Role, WorkerState
from baton.wire import decode_pb2, decode_pb2_grpc

TOKENS = [[0, 1, 2], [0, 1, 2]]
SILENCE_S = 0.2


@dataclass
class Trial:
    """A request of two choices that has come to where `script` halts, on the workers a-p and a-d."""

    fleet: FleetOfTest
    router: Router
    script: Script
    task: asyncio.Task[list[list[int]]]

    def stall(self, worker_id: str) -> None:
        self.set_state(worker_id, WorkerState.STALLED)

    def set_state(self, worker_id: str, state: WorkerState) -> None:
        self.fleet.members[worker_id] = replace(self.fleet.members[worker_id], state=state)
        self.router.workers.update(self.fleet.snapshot)

    async def next_release(self) -> str:
        """The request that the router gives up next on a-d; "a marker" where it gives up none before it has been
        there and back."""
        channel = self.router.workers.channels["a-d"]
        release = decode_pb2.ReleaseRequest(request_id="a marker")
        stub = decode_pb2_grpc.DecodeStub(channel.grpc)
        await stub.Release(release, timeout=WAIT_S, metadata=channel.metadata)
        return await self.script.released.get()

    async def answer(self) -> list[list[int]]:
        async with asyncio.timeout(WAIT_S):
            return await self.task


@asynccontextmanager
async def halted(
    halt_at: str, *others: tuple[str, Role], silence_s: float = SILENCE_S
) -> AsyncIterator[Trial]:
    fleet, script = FleetOfTest(), Script(halt_at)
    async with (
        fleet.scripted_worker("a-p", Role.PREFILL, script),
        fleet.scripted_worker("a-d", Role.DECODE, script),
        routed(fleet, silence_s=silence_s) as router,
    ):
        task = asyncio.create_task(router.collect(request(prompt_ids(9), n=2)))
        async with asyncio.timeout(WAIT_S):
            await script.has_halted.wait()
        good = Script()
        async with add(fleet, router, good, *others):
            yield Trial(fleet, router, script, task)


@asynccontextmanager
async def add(
    fleet: FleetOfTest, router: Router, script: Script, *workers: tuple[str, Role]
) -> AsyncIterator[None]:
    if not workers:
        yield
        return
    [(worker_id, role), *others] = workers
    async with fleet.scripted_worker(worker_id, role, script):
        router.workers.update(fleet.snapshot)
        await until(lambda: router.workers.has_ready(worker_id, role))
        async with add(fleet, router, script, *others):
            yield


@pytest.mark.parametrize("station", ["grant", "started", "decoding"])
async def test_what_a_stalled_decode_worker_has_goes_on_at_another_and_it_is_told(station: str) -> None:
    async with halted(station, ("b-p", Role.PREFILL), ("b-d", Role.DECODE)) as trial:
        trial.stall("a-d")
        assert await trial.answer() == TOKENS
        async with asyncio.timeout(WAIT_S):
            assert await trial.script.released.get() in trial.script.reserved


async def test_what_the_only_decode_worker_has_waits_there_until_another_comes() -> None:
    async with halted("decoding", ("b-p", Role.PREFILL)) as trial:
        await until(lambda: trial.router.transitions[-1] == "hand_off")
        trial.stall("a-d")
        assert [await trial.next_release() for _ in range(3)] == ["a marker"] * 3, "it was given up"
        assert not trial.task.done()
        async with add(trial.fleet, trial.router, Script(), ("b-d", Role.DECODE)):
            await until(trial.router.workers.can_serve)
            trial.router.workers.update(trial.fleet.snapshot)
            assert await trial.answer() == TOKENS


@pytest.mark.parametrize("station", ["scheduled", "attach", "first_tokens"])
async def test_a_prompt_on_a_stalled_prefill_worker_is_computed_elsewhere(station: str) -> None:
    async with halted(station, ("b-p", Role.PREFILL)) as trial:
        trial.stall("a-p")
        assert await trial.answer() == TOKENS
        async with asyncio.timeout(WAIT_S):
            await trial.script.has_prefill_ended.wait()
        assert trial.router.transitions.count("retry") == 1


async def test_a_prefill_worker_that_hangs_before_its_report_costs_nothing_where_decode_has_all() -> None:
    async with halted("handed_off") as trial:
        assert await trial.answer() == TOKENS
        assert trial.router.transitions == ["place", "schedule", "first_tokens", "hand_off", "finish"]


@pytest.mark.parametrize("station", ["scheduled", "first_tokens"])
async def test_a_prefill_worker_that_the_registry_has_not_heard_for_long_is_not_waited_for(
    station: str,
) -> None:
    async with halted(station, ("b-p", Role.PREFILL)) as trial:
        members = tuple(m for m in trial.fleet.snapshot.members if m.worker.worker_id != "a-p")
        trial.router.workers.update(Fleet(members))
        assert await trial.answer() == TOKENS


async def test_a_prefill_worker_that_is_heard_again_in_time_keeps_its_prompts() -> None:
    async with halted("first_tokens", ("b-p", Role.PREFILL)) as trial:
        members = tuple(m for m in trial.fleet.snapshot.members if m.worker.worker_id != "a-p")
        trial.router.workers.update(Fleet(members))
        trial.router.workers.update(trial.fleet.snapshot)
        await asyncio.sleep(2 * SILENCE_S)
        assert not trial.task.done()
        assert "retry" not in trial.router.transitions
        trial.stall("a-p")
        assert await trial.answer() == TOKENS


async def test_a_prefill_worker_that_is_forgotten_again_has_as_long_as_the_first_time() -> None:
    async with halted("first_tokens", ("b-p", Role.PREFILL), silence_s=2 * SILENCE_S) as trial:
        forgotten = Fleet(tuple(m for m in trial.fleet.snapshot.members if m.worker.worker_id != "a-p"))
        trial.router.workers.update(forgotten)
        await asyncio.sleep(SILENCE_S)
        trial.router.workers.update(trial.fleet.snapshot)
        trial.router.workers.update(forgotten)
        again_s = asyncio.get_running_loop().time()
        assert await trial.answer() == TOKENS
        assert asyncio.get_running_loop().time() >= again_s + 2 * SILENCE_S
