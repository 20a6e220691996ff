"""A router's request flow over the workers of `mini_fleet`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mini_fleet import FleetOfTest, Script, until
from stepped_pair import SECRET

from baton.events import Event, EventStream
from baton.fleet import Role
from baton.lifecycle import State, step
from baton.request import GenerationRequest
from baton.router.request_flow import FlowLimits, RequestFlow
from baton.router.workers import FORGOTTEN_S, Workers


class Router:
    """Workers, flow and events of one router over the test's fleet."""

    def __init__(self, fleet: FleetOfTest, limits: FlowLimits, silence_s: float = FORGOTTEN_S) -> None:
        self.workers = Workers(SECRET, "router-1", fleet.crashes.append, silence_s)
        self.events: list[Event] = []
        stream = EventStream()
        stream.subscribe(self.events.append)
        self.flow = RequestFlow(self.workers, stream, limits)
        self.workers.update(fleet.snapshot)

    async def collect(self, asked: GenerationRequest) -> list[list[int]]:
        tokens: list[list[int]] = [[] for _ in range(asked.n)]
        async with self.flow.start(asked) as run:
            async for output in run.outputs():
                assert output.token.index == len(tokens[output.choice])
                tokens[output.choice].append(output.token.token_id)
        return tokens

    @property
    def transitions(self) -> list[str]:
        """Checked against the table once more."""
        state = State.RECEIVED
        for event in self.events:
            state = step(event.request_id, state, event.transition)
            assert state is event.state
        return [event.transition.value for event in self.events]

    def assert_nothing_under_way(self) -> None:
        for tracked in self.workers._tracked.values():
            assert (tracked.leases, tracked.prefill_tokens) == (0, 0)
            assert (tracked.sequences, tracked.queued_sequences, tracked.context_tokens) == (0, 0, 0)
            assert tracked.prefill_s == 0


@asynccontextmanager
async def routed(
    fleet: FleetOfTest, limits: FlowLimits | None = None, silence_s: float = FORGOTTEN_S
) -> AsyncIterator[Router]:
    router = Router(fleet, limits or FlowLimits(policy="round_robin"), silence_s)
    await until(router.workers.can_serve)
    yield router
    router.assert_nothing_under_way()
    await router.workers.close()
    assert not fleet.crashes


@asynccontextmanager
async def scripted(script: Script, limits: FlowLimits | None = None) -> AsyncIterator[Router]:
    """One prefill and one decode worker that follow `script`, and a router."""
    fleet = FleetOfTest()
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, script),
        fleet.scripted_worker("d0", Role.DECODE, script),
        routed(fleet, limits) as router,
    ):
        yield router
