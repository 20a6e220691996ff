"""Requests that wait in the router, over real gRPC and real HTTP: turns, shares, refusals, and what they leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from live_server import serving
from mini_fleet import FleetOfTest, Script, until
from openai import AsyncOpenAI
from stepped_pair import SECRET, request

from baton import demo_model
from baton.errors import BatonError, Overloaded, QueueTimeout, SloUnattainable
from baton.events import Event, EventStream
from baton.fleet import Role
from baton.request import GenerationRequest, Objectives
from baton.router.admission import SloPolicy
from baton.router.api.app import create_app
from baton.router.api.settings import ApiSettings
from baton.router.backend import FleetBackend
from baton.router.config import RouterConfig
from baton.router.control import FleetControl
from baton.router.elastic import Elastic
from baton.router.metrics import RouterMetrics
from baton.router.request_flow import FlowLimits, RequestFlow
from baton.router.sessions import Sessions
from baton.router.snapshot import Disaggregation
from baton.router.tokenizer import TextProcessor
from baton.router.workers import Workers

ONE_AT_A_TIME = FlowLimits(max_requests=1)


class Router:
    """A prefill and a decode worker that follow `script`, and the flow over them."""

    def __init__(self, fleet: FleetOfTest, script: Script, limits: FlowLimits) -> None:
        self.script = script
        self.events: list[Event] = []
        self.workers = Workers(SECRET, "router-1", fleet.crashes.append)
        self.workers.update(fleet.snapshot)
        stream = EventStream()
        stream.subscribe(self.events.append)
        self.flow = RequestFlow(self.workers, stream, limits)
        self.metrics = RouterMetrics(list, lambda: "m")
        stream.subscribe(self.metrics.on_event)
        self.running: set[asyncio.Task[BatonError | None]] = set()

    def send(self, tenant: str = "", **fields: Any) -> asyncio.Task[BatonError | None]:
        """The outcome of one request: None where it got all its tokens."""
        asked = request([1, 2, 3], tenant=tenant, **fields)
        task = asyncio.create_task(self._run(asked), name=asked.request_id)
        self.running.add(task)
        return task

    async def hold(self) -> asyncio.Task[BatonError | None]:
        """One request that its worker never begins."""
        task = self.send()
        await self.script.has_halted.wait()
        return task

    async def wait_in_line(self, *tenants: str) -> list[asyncio.Task[BatonError | None]]:
        tasks = []
        for tenant in tenants:
            tasks.append(self.send(tenant))
            await asyncio.sleep(0)
        return tasks

    def transitions(self, task: asyncio.Task[BatonError | None]) -> list[str]:
        return [event.transition.value for event in self.events if event.request_id == task.get_name()]

    def counted(self, line: str) -> bool:
        return line in self.metrics.text().decode().splitlines()

    async def _run(self, asked: GenerationRequest) -> BatonError | None:
        try:
            async with self.flow.start(asked) as run:
                async for _ in run.outputs():
                    pass
        except BatonError as error:
            return error
        return None


@asynccontextmanager
async def routed(limits: FlowLimits, script: Script | None = None) -> AsyncIterator[Router]:
    fleet, script = FleetOfTest(), script or Script()
    async with (
        fleet.scripted_worker("p0", Role.PREFILL, script),
        fleet.scripted_worker("d0", Role.DECODE, script),
        asyncio.timeout(20),
    ):
        router = Router(fleet, script, limits)
        await until(router.workers.can_serve)
        yield router
        for task in router.running:
            task.cancel()
        await asyncio.wait(router.running)
        assert router.flow.waiting == 0
        await router.workers.close()
    assert not fleet.crashes


async def test_a_fleet_with_room_makes_nobody_wait() -> None:
    async with routed(FlowLimits(max_waiting=0)) as router:
        tasks = [router.send() for _ in range(10)]
        assert await asyncio.gather(*tasks) == [None] * 10
        assert all("admit" not in router.transitions(task) for task in tasks)


async def test_who_waited_is_served_when_its_turn_comes() -> None:
    async with routed(ONE_AT_A_TIME) as router:
        tasks = await router.wait_in_line("", "", "")
        assert router.flow.waiting == 2
        assert await asyncio.gather(*tasks) == [None] * 3
        assert router.transitions(tasks[0])[0] == "place"
        assert router.transitions(tasks[2])[:2] == ["admit", "place"]
        assert router.counted("baton_queue_wait_seconds_count 2.0")


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    async with routed(FlowLimits(max_requests=1, max_waiting=1), Script("scheduled")) as router:
        await router.hold()
        waiting, refused = await router.wait_in_line("", "")
        error = await refused
        assert isinstance(error, Overloaded)
        assert 0 < error.retry_after_s <= 60
        assert router.transitions(refused) == ["refuse"]
        assert not waiting.done()


async def test_a_tenant_that_floods_the_queue_gives_way_to_others() -> None:
    async with routed(FlowLimits(max_requests=1, max_waiting=3), Script("scheduled")) as router:
        await router.hold()
        first, second, last = await router.wait_in_line("flood", "flood", "flood")
        (modest,) = await router.wait_in_line("modest")
        assert isinstance(await last, Overloaded)
        assert not any(task.done() for task in (first, second, modest))


async def test_tenants_take_turns_however_many_requests_each_has() -> None:
    async with routed(ONE_AT_A_TIME) as router:
        tasks = await router.wait_in_line(*["flood"] * 12, *["modest"] * 4)
        await asyncio.gather(*tasks)
        names = {task.get_name(): number for number, task in enumerate(tasks)}
        placed = [names[e.request_id] for e in router.events if e.transition.value == "place"]
        assert sum(number >= 12 for number in placed[1:9]) == 4


async def test_a_turn_that_does_not_come_is_a_queue_timeout() -> None:
    limits = FlowLimits(max_requests=1, queue_timeout_s=0.3)
    async with routed(limits, Script("decoding")) as router:
        await router.hold()
        late = router.send()
        assert isinstance(await late, QueueTimeout)
        assert router.transitions(late) == ["refuse"]


async def test_who_leaves_the_queue_holds_up_nobody() -> None:
    script = Script("scheduled")
    async with routed(ONE_AT_A_TIME, script) as router:
        holder = await router.hold()
        leaving, staying = await router.wait_in_line("", "")
        leaving.cancel()
        await asyncio.wait([leaving])
        assert router.transitions(leaving) == ["cancel"]
        script.halt_at = ""
        holder.cancel()
        assert await staying is None


async def test_a_request_that_is_cancelled_with_its_turn_passes_it_on() -> None:
    script = Script("scheduled")
    async with routed(ONE_AT_A_TIME, script) as router:
        holder = await router.hold()
        leaving, staying = await router.wait_in_line("", "")
        script.halt_at = ""
        holder.cancel()
        await until(holder.done)
        leaving.cancel()
        assert await staying is None


async def test_an_objective_that_cannot_be_met_is_refused_at_once_where_that_is_the_policy() -> None:
    hopeless = Objectives(ttft_s=0.001)
    limits = FlowLimits(slo_policy=SloPolicy.REFUSE, disaggregation=Disaggregation.ALWAYS)
    async with routed(limits) as router:
        error = await router.send(objectives=hopeless)
        assert isinstance(error, SloUnattainable)
        assert error.retry_after_s > 0
        assert await router.send(objectives=Objectives(ttft_s=10.0, tpot_s=10.0)) is None
        for name, outcome in (("ttft", "missed"), ("ttft", "attained"), ("tpot", "attained")):
            assert router.counted(f'baton_slo_requests_total{{objective="{name}",outcome="{outcome}"}} 1.0')
    async with routed(FlowLimits()) as router:
        assert await router.send(objectives=hopeless) is None
        assert router.counted('baton_slo_requests_total{objective="ttft",outcome="missed"} 1.0')


async def test_an_objective_that_is_missed_while_waiting_is_refused_then() -> None:
    limits = FlowLimits(max_requests=1, slo_policy=SloPolicy.REFUSE)
    async with routed(limits, Script("scheduled")) as router:
        await router.hold()
        assert isinstance(await router.send(objectives=Objectives(ttft_s=0.5)), SloUnattainable)


async def test_the_official_client_sees_what_the_queue_decided() -> None:
    limits = FlowLimits(max_requests=1, max_waiting=1, queue_timeout_s=0.5)
    config = RouterConfig(demo_model.PATH, ("m",), SECRET)
    text = TextProcessor.from_folder(demo_model.PATH)
    async with routed(limits, Script("decoding")) as router:
        control = FleetControl(router.workers, SECRET)
        elastic = Elastic(config.planner, list, control, lambda: False, lambda decision: None)
        sessions = Sessions(lambda: router.workers.channels, lambda: router.workers.members)
        backend = FleetBackend(router.workers, router.flow, config, control, elastic, sessions)
        app = create_app(backend, text, ApiSettings())
        async with (
            serving(app) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):

            async def ask(tenant: str, **headers: str) -> object:
                headers["x-tenant-id"] = tenant
                return await client.completions.create(
                    model="m", prompt=[1, 2], max_tokens=3, extra_headers=headers
                )

            await router.hold()
            waiting = asyncio.create_task(ask("a"))
            await until(lambda: router.flow.waiting == 1)
            with pytest.raises(openai.RateLimitError) as full:
                await ask("a")
            assert int(full.value.response.headers["retry-after"]) >= 1
            with pytest.raises(openai.APIStatusError) as late:
                await waiting
            assert (late.value.status_code, late.value.code) == (408, "queue_timeout")
            with pytest.raises(openai.BadRequestError, match="x-slo-ttft-ms"):
                await ask("a", **{"x-slo-ttft-ms": "nan"})
            with pytest.raises(openai.BadRequestError, match="x-tenant-id"):
                await ask("a" * 513)
