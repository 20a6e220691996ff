"""Who carries out the planner's orders: a real HTTP server, and a real supervisor's socket."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from baton.cli.scale_desk import ScaleDesk
from baton.errors import ConfigError, InvalidRequest, Unavailable
from baton.fleet import Role
from baton.router.planner.actions import Start, Stop
from baton.router.scalers import ScalerAddress, checked_scaler, open_scaler
from baton.router.scalers.base import ScaleOrder
from baton.router.scalers.local import LocalScaler
from baton.router.scalers.webhook import WebhookScaler, signature

ORDER = ScaleOrder(Start(Role.DECODE, 4), "decode is pressed", {"decode": {"pressure": 1.2}})


@contextmanager
def orchestrator(*statuses: int) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Its URL, and what it was asked; it answers with `statuses`, the last of them for ever."""
    asked: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = statuses[min(len(asked), len(statuses) - 1)]
            asked.append((headers, body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/scale", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_an_order_is_posted_until_it_is_taken_under_one_id_signed_each_time() -> None:
    with orchestrator(503, 429, 202) as (url, asked):
        await WebhookScaler(url, "token", "key").order(ORDER, lambda: True)
    assert len(asked) == 3
    for headers, body in asked:
        assert headers["idempotency-key"] == ORDER.order_id
        assert headers["authorization"] == "Bearer token"
        unix_s = int(headers["x-baton-signature"].partition(",")[0].removeprefix("t="))
        assert headers["x-baton-signature"] == signature(b"key", unix_s, body)
        assert json.loads(body) == {
            "id": ORDER.order_id,
            "action": "start",
            "role": "decode",
            "workers": 4,
            "reason": "decode is pressed",
            "inputs": {"decode": {"pressure": 1.2}},
        }


@pytest.mark.parametrize("status", [301, 400, 401])
async def test_an_answer_that_will_not_change_refuses_the_order_at_once(status: int) -> None:
    with orchestrator(status) as (url, asked), pytest.raises(Unavailable, match=f"status {status}"):
        await WebhookScaler(url, "", "").order(ORDER, lambda: True)
    assert len(asked) == 1
    assert not {"authorization", "x-baton-signature"} & asked[0][0].keys()


async def test_an_order_that_nobody_takes_ends_at_its_deadline() -> None:
    with orchestrator(500) as (url, _), pytest.raises(Unavailable, match=r"within 2 s: status 500"):
        await WebhookScaler(url, "", "", deadline_s=2.0).order(ORDER, lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        scaler = WebhookScaler(f"http://127.0.0.1:{silent.getsockname()[1]}", "", "", deadline_s=0.3)
        with pytest.raises(Unavailable, match="no answer"):
            await scaler.order(ORDER, lambda: True)


async def test_whoever_does_not_lead_any_more_sends_an_order_no_second_time(tmp_path: Path) -> None:
    with orchestrator(503) as (url, asked):
        with pytest.raises(Unavailable, match="does not lead any more"):
            await WebhookScaler(url, "", "").order(ORDER, leads=lambda: not asked)
        assert len(asked) == 1
    with pytest.raises(Unavailable, match="does not lead any more"):
        await LocalScaler(str(tmp_path / "nobody")).order(ORDER, leads=lambda: False)


class Supervised:
    """What a supervisor would do, and one that knows only worker `d0`."""

    def __init__(self) -> None:
        self.done: list[tuple[object, ...]] = []
        self.desk = ScaleDesk(lambda role, workers: self.done.append((role, workers)), self.stop)

    def stop(self, worker_id: str) -> None:
        if worker_id != "d0":
            raise InvalidRequest(f"there is no worker {worker_id}")
        self.done.append((worker_id,))

    async def order(self, order: ScaleOrder) -> None:
        answering = asyncio.create_task(asyncio.to_thread(self.desk.answer))
        await LocalScaler(str(self.desk.path)).order(order, lambda: True)
        await answering

    async def say(self, line: bytes) -> str:
        answering = asyncio.create_task(asyncio.to_thread(self.desk.answer))
        reader, writer = await asyncio.open_unix_connection(self.desk.path)
        writer.write(line)
        writer.write_eof()
        answer = json.loads(await reader.readline())
        writer.close()
        await answering
        return str(answer["error"])


@pytest.fixture
def supervised() -> Iterator[Supervised]:
    made = Supervised()
    yield made
    made.desk.close()
    assert not made.desk.path.parent.exists()


async def test_orders_reach_the_supervisor_and_its_refusals_come_back(supervised: Supervised) -> None:
    await supervised.order(ORDER)
    await supervised.order(ScaleOrder(Stop("d0"), "idle"))
    with pytest.raises(Unavailable, match="there is no worker d7"):
        await supervised.order(ScaleOrder(Stop("d7"), "idle"))
    assert supervised.done == [("decode", 4), ("d0",)]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "one line"),
        (b"{", "one line"),
        (b"{\n", "JSON"),
        (b"[" * 60_000 + b"\n", "JSON"),
        (b"\xff\n", "JSON"),
        (b"[]\n", "neither"),
        (b'{"action": "stop", "worker": 7}\n', "neither"),
        (b'{"action": "start", "role": "router", "workers": 2}\n', "'router'"),
        (b'{"action": "start", "role": "decode", "workers": 100000}\n', "workers is 100000"),
        (b'{"action": "start", "role": "decode", "workers": -1}\n', "workers is -1"),
        (b"x" * 70_000, "at most 65536 bytes"),
    ],
)
async def test_a_supervisor_refuses_what_is_no_order(supervised: Supervised, line: bytes, why: str) -> None:
    assert why in await supervised.say(line)
    assert supervised.done == []


def test_only_this_user_may_enter_the_socket_s_folder(supervised: Supervised) -> None:
    assert supervised.desk.path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_supervisor_that_is_gone_is_no_crash(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        await LocalScaler(str(tmp_path / "nobody")).order(ORDER, lambda: True)


def test_scalers_go_by_their_addresses() -> None:
    assert open_scaler(ScalerAddress()) is None
    assert isinstance(open_scaler(ScalerAddress("unix:/run/x")), LocalScaler)
    assert isinstance(open_scaler(ScalerAddress("https://here/scale", "token")), WebhookScaler)
    for wrong in (
        ScalerAddress("ftp://x"),
        ScalerAddress("http://host:abc"),
        ScalerAddress("local"),
        ScalerAddress("unix:/x", token="t"),
    ):
        with pytest.raises(ConfigError) as caught:
            checked_scaler(wrong)
        assert caught.value.field == "scaler"
