"""The planner at work: who acts, what it tells, and that two of them never act at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from baton.discovery.election import Candidacy
from baton.discovery.embedded import EmbeddedRegistry, OwnOffices
from baton.errors import Unavailable
from baton.fleet import KVBlocks, Member, ModelInfo, Role, WorkerInfo, WorkerLoad, WorkerProfile, WorkerState
from baton.router.elastic import Decision, Elastic, PlannerMode, PlannerSettings, status_of
from baton.router.event_log import EventLog
from baton.router.metrics import RouterMetrics
from baton.router.planner.actions import Action, Start, Stop
from baton.router.planner.rules import Bounds, PlannerRules
from baton.router.scalers.base import ScaleOrder, require_lead

RULES = PlannerRules(window_s=0.02, rescue_after_s=0.0, starting_s=0.0)


def member(worker_id: str, role: Role, changes_s: tuple[float, ...] = ()) -> Member:
    worker = WorkerInfo(
        worker_id,
        b"12345678",
        role,
        "127.0.0.1:1",
        1,
        ModelInfo("m", "f", 1000, 100),
        b"",
        16,
        WorkerProfile(1000.0, 0.01),
        "0",
        role_changes_unix_s=changes_s,
    )
    load = WorkerLoad(running=2, kv_blocks=KVBlocks(100, 50, 20, 20, 10), busy_s=3.0)
    return Member(worker, WorkerState.READY, load)


class Refusing:
    """A fleet that never obeys, so that there always is something to do; tells `on_act` of every order."""

    def __init__(self, on_act: Callable[[], None]) -> None:
        self._on_act = on_act

    async def change_role(self, worker_id: str, role: Role) -> object:
        self._on_act()
        raise Unavailable("not now")


class Line:
    """A router's way to the registry, which can be cut."""

    def __init__(self, registry: EmbeddedRegistry) -> None:
        self._offices = OwnOffices(registry)
        self.is_cut = False

    async def elect(self, office: str, candidate: str) -> float:
        if self.is_cut:
            raise Unavailable("the line is cut")
        return await self._offices.elect(office, candidate)

    async def resign(self, office: str, candidate: str) -> None:
        if self.is_cut:
            raise Unavailable("the line is cut")
        await self._offices.resign(office, candidate)


class SlowScaler:
    """Takes an order once `is_open` is set, or with `refuses` never."""

    def __init__(self, refuses: bool = False) -> None:
        self.is_open = asyncio.Event()
        self.asked: list[Action] = []
        self.taken: list[Action] = []
        self._refuses = refuses

    async def order(self, order: ScaleOrder, leads: Callable[[], bool]) -> None:
        self.asked.append(order.action)
        if self._refuses:
            raise Unavailable("no machine is left")
        await self.is_open.wait()
        require_lead(leads)
        self.taken.append(order.action)


def planner(
    mode: PlannerMode,
    *members: Member,
    leads: Callable[[], bool] = lambda: True,
    on_act: Callable[[], None] = lambda: None,
    publish: Callable[[Decision], None] = lambda decision: None,
) -> Elastic:
    settings = PlannerSettings(mode, RULES, interval_s=0.02)
    return Elastic(settings, lambda: members, Refusing(on_act), leads, publish)


LONELY = member("p0", Role.PREFILL)
"""A fleet that has lost its decode workers."""


async def decisions_of(elastic: Elastic, count: int) -> None:
    for _ in range(count):
        elastic.decide()
        await asyncio.sleep(0.02)


async def test_prompts_that_pile_up_in_the_router_press_on_prefill() -> None:
    waiting_tokens, started_s = itertools.count(0, 100_000), time.monotonic()

    def busy() -> tuple[Member, ...]:
        load = WorkerLoad(busy_s=time.monotonic() - started_s)
        return replace(member("p0", Role.PREFILL), load=load), member("d0", Role.DECODE)

    settings = PlannerSettings(PlannerMode.ADVISE, RULES)
    elastic = Elastic(
        settings,
        busy,
        Refusing(lambda: None),
        lambda: True,
        lambda _: None,
        None,
        lambda: next(waiting_tokens),
    )
    await decisions_of(elastic, 3)
    assert elastic.last is not None
    assert elastic.last.plan.pools[Role.PREFILL].pressure > 2, (
        "a worker that is merely busy is pressed by 1.2"
    )


async def next_act(acted: asyncio.Queue[int]) -> int:
    """Of the acts from now on the first: by which planner."""
    while not acted.empty():
        acted.get_nowait()
    async with asyncio.timeout(10.0):
        return await acted.get()


async def test_two_planners_never_act_at_once_whoever_is_cut_off_from_the_registry() -> None:
    registry = EmbeddedRegistry(lease_s=0.6)
    lines = [Line(registry), Line(registry)]
    candidacies = [Candidacy(line, "planner", f"router-{n}") for n, line in enumerate(lines)]
    acted: asyncio.Queue[int] = asyncio.Queue()

    def leads(n: int) -> bool:
        return candidacies[n].is_leader

    def act(n: int) -> None:
        assert [candidacy.is_leader for candidacy in candidacies] == [i == n for i in range(2)]
        acted.put_nowait(n)

    planners = [
        planner(
            PlannerMode.ON,
            LONELY,
            leads=partial(leads, n),
            on_act=partial(act, n),
        )
        for n in range(2)
    ]
    runs = [*(elastic.run() for elastic in planners), *(candidacy.run() for candidacy in candidacies)]
    tasks = [asyncio.create_task(run) for run in runs]
    try:
        for _ in range(3):
            leader = await next_act(acted)
            lines[leader].is_cut, lines[1 - leader].is_cut = True, False
            while await next_act(acted) == leader:
                pass
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("mode", "leads", "acts"),
    [
        (PlannerMode.ON, True, True),
        (PlannerMode.ON, False, False),
        (PlannerMode.ADVISE, True, False),
        (PlannerMode.OFF, True, True),
        (PlannerMode.OFF, False, False),
    ],
)
async def test_only_a_leader_acts_and_none_that_advises_and_all_tell_what_they_think(
    mode: PlannerMode, leads: bool, acts: bool
) -> None:
    acted: list[None] = []
    told: list[Decision] = []
    elastic = planner(
        mode, LONELY, leads=lambda: leads, on_act=lambda: acted.append(None), publish=told.append
    )
    await decisions_of(elastic, 4)
    assert bool(acted) is acts
    assert len(told) == 4
    assert told[-1].view()["actions"] == [{"action": "flip", "worker": "p0", "role": "decode"}]
    assert told[-1].plan.reason == "no decode worker is left"


async def test_an_order_that_is_refused_is_tried_again() -> None:
    acted: list[None] = []
    await decisions_of(planner(PlannerMode.ON, LONELY, on_act=lambda: acted.append(None)), 5)
    assert len(acted) >= 2


def three_wanted(
    fleet: list[Member],
    scaler: SlowScaler,
    leads: Callable[[], bool] = lambda: True,
    on_act: Callable[[], None] = lambda: None,
) -> Elastic:
    settings = PlannerSettings(PlannerMode.ON, replace(RULES, workers=Bounds(3, 3)), interval_s=0.02)
    return Elastic(settings, lambda: fleet, Refusing(on_act), leads, lambda decision: None, scaler)


TWO = [member("p0", Role.PREFILL), member("d0", Role.DECODE)]
FOUR = [*TWO, member("d1", Role.DECODE), member("d2", Role.DECODE)]


async def test_a_slow_scaler_holds_up_no_decision_and_is_asked_once() -> None:
    scaler = SlowScaler()
    elastic = three_wanted(TWO, scaler)
    await decisions_of(elastic, 6)
    assert [type(action) for action in scaler.asked] == [Start]
    assert scaler.taken == []
    scaler.is_open.set()
    await decisions_of(elastic, 4)
    assert scaler.taken == scaler.asked


async def test_an_order_that_nobody_has_taken_yet_gives_way_to_a_newer_one() -> None:
    fleet, scaler = [*TWO], SlowScaler()
    elastic = three_wanted(fleet, scaler)
    await decisions_of(elastic, 4)
    fleet[:] = FOUR
    await decisions_of(elastic, 4)
    scaler.is_open.set()
    await decisions_of(elastic, 2)
    assert [type(action) for action in scaler.asked] == [Start, Stop]
    assert [type(action) for action in scaler.taken] == [Stop]


async def test_an_order_of_a_router_that_leads_no_more_is_not_taken() -> None:
    scaler = SlowScaler()
    elastic = three_wanted(TWO, scaler, leads=lambda: not scaler.is_open.is_set())
    await decisions_of(elastic, 4)
    scaler.is_open.set()
    await decisions_of(elastic, 4)
    assert [type(action) for action in scaler.asked] == [Start]
    assert scaler.taken == []


async def test_an_order_that_is_refused_rests_while_workers_go_on_to_change_roles() -> None:
    acted: list[None] = []
    fleet, scaler = [*TWO], SlowScaler(refuses=True)
    elastic = three_wanted(fleet, scaler, on_act=lambda: acted.append(None))
    await decisions_of(elastic, 6)
    assert len(scaler.asked) == 1
    assert not acted
    fleet[:] = [LONELY]
    await decisions_of(elastic, 4)
    assert len(scaler.asked) == 1
    assert acted


async def test_decisions_are_metrics_and_lines_of_the_event_log_without_repetition(tmp_path: Path) -> None:
    metrics = RouterMetrics(list, lambda: "m")
    log = EventLog(tmp_path / "events.jsonl")

    def publish(decision: Decision) -> None:
        metrics.on_decision(decision)
        log.on_decision(decision)

    fleet = member("p0", Role.PREFILL), member("d0", Role.DECODE)
    await decisions_of(planner(PlannerMode.ON, *fleet, publish=publish), 6)
    log.close()
    text = metrics.text().decode()
    assert 'baton_planner_workers{role="decode"} 1.0' in text
    assert "baton_planner_leads 1.0" in text
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["planner"]["held_by"] for line in lines] == ["warming up", "comfort"]
    pressure = lines[-1]["planner"]["pools"]["decode"]["pressure"]
    assert 0 < pressure < math.inf


def test_a_worker_s_status_is_what_it_announces_on_the_planner_s_clock() -> None:
    told = member("d0", Role.DECODE, (1000.0, 2000.0))
    told = replace(told, worker=replace(told.worker, max_running=64))
    status = status_of(told, monotonic_less_unix_s=-900.0, now_s=500.0)
    assert (status.max_running, status.epoch) == (64, b"12345678")
    assert (status.held_tokens, status.cached_tokens, status.kv_tokens) == (480, 320, 1600)
    assert (status.running, status.busy_s, status.is_ready) == (2, 3.0, True)
    assert status.role_changes_s == (100.0, 500.0), (
        "a clock that is ahead does not make a change one of the future"
    )
