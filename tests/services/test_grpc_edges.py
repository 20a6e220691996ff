"""What a caller of a worker's ports can do wrong, and how the standing streams begin, beat and end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from mini_fleet import FleetOfTest, is_in_use, until
from model_folders import prompt_ids
from stepped_pair import GREEDY, SECRET, request

from baton.background import run_forever
from baton.engine.engine import Engine
from baton.errors import BatonError, Cancelled, HandoffFailed, InvalidRequest, Overloaded, Unavailable
from baton.fleet import Role
from baton.rpc import Channel
from baton.wire import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from baton.wire.convert import request_to_wire

TIMEOUT_S = 10.0


@pytest.fixture
async def prefill(engine_of: Callable[[str, int], Engine]) -> AsyncIterator[tuple[Engine, Channel]]:
    async for served in _serve(engine_of("prefill", 64), Role.PREFILL):
        yield served


@pytest.fixture
async def decode(engine_of: Callable[[str, int], Engine]) -> AsyncIterator[tuple[Engine, Channel]]:
    async for served in _serve(engine_of("decode", 64), Role.DECODE):
        yield served


async def _serve(engine: Engine, role: Role) -> AsyncIterator[tuple[Engine, Channel]]:
    fleet = FleetOfTest()
    async with fleet.whole_worker("w", role, engine):
        channel = Channel(fleet.members["w"].worker.address, SECRET)
        yield engine, channel
        await until(lambda: not is_in_use(engine))
        await channel.close()
    assert not fleet.crashes
    engine.blocks.clear_cache()


def _start(tokens: int = 20, waited_s: float = 0.0) -> prefill_pb2.PrefillCommand:
    wire = request_to_wire(request(prompt_ids(tokens)), 60.0)
    return prefill_pb2.PrefillCommand(start=prefill_pb2.PrefillStart(request=wire, waited_s=waited_s))


async def _run(channel: Channel, *commands: prefill_pb2.PrefillCommand) -> list[str | None]:
    """Sends the commands, closes the caller's side, and reads to the end."""
    call = prefill_pb2_grpc.PrefillStub(channel.grpc).Run(metadata=channel.metadata, timeout=TIMEOUT_S)
    async with channel.errors_translated():
        for command in commands:
            await call.write(command)
        await call.done_writing()
        return [event.WhichOneof("event") async for event in call]


async def test_a_call_that_says_nothing_may_be_made_elsewhere(
    prefill: tuple[Engine, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the worker was stopped for a while: its own clock says then that nothing came."""
    monkeypatch.setattr("baton.prefill.servicer.START_TIMEOUT_S", 0.05)
    channel = prefill[1]
    call = prefill_pb2_grpc.PrefillStub(channel.grpc).Run(metadata=channel.metadata, timeout=TIMEOUT_S)
    with pytest.raises(Unavailable, match="no `start` came within"):
        async with channel.errors_translated():
            await call.read()


async def test_a_prefill_call_without_a_message_is_refused(prefill: tuple[Engine, Channel]) -> None:
    with pytest.raises(InvalidRequest, match="start"):
        await _run(prefill[1])


@pytest.mark.parametrize("waited_s", [-1.0, math.nan, math.inf])
async def test_a_wait_that_is_no_time_is_refused(prefill: tuple[Engine, Channel], waited_s: float) -> None:
    with pytest.raises(InvalidRequest, match="waited_s"):
        await _run(prefill[1], _start(waited_s=waited_s))


async def test_a_caller_that_closes_its_side_before_attach_gets_its_blocks_freed(
    prefill: tuple[Engine, Channel],
) -> None:
    with pytest.raises(InvalidRequest, match="attach"):
        await _run(prefill[1], _start())


async def test_a_second_start_is_refused(prefill: tuple[Engine, Channel]) -> None:
    with pytest.raises(InvalidRequest, match="attach"):
        await _run(prefill[1], _start(), _start())


async def test_a_forged_ticket_fails_the_hand_off(prefill: tuple[Engine, Channel]) -> None:
    attach = prefill_pb2.PrefillCommand(attach=prefill_pb2.PrefillAttach(ticket=b"forged"))
    with pytest.raises(HandoffFailed):
        await _run(prefill[1], _start(), attach)


async def test_a_call_that_is_dropped_frees_its_blocks(prefill: tuple[Engine, Channel]) -> None:
    engine, channel = prefill
    call = prefill_pb2_grpc.PrefillStub(channel.grpc).Run(metadata=channel.metadata, timeout=TIMEOUT_S)
    await call.write(_start())
    assert isinstance(await call.read(), prefill_pb2.PrefillEvent)
    await until(lambda: is_in_use(engine))
    call.cancel()
    await until(lambda: not is_in_use(engine))


async def _reserve(channel: Channel, router_id: str) -> decode_pb2.ReserveReply:
    message = decode_pb2.ReserveRequest(
        router_id=router_id,
        request=request_to_wire(request(prompt_ids(20)), 60.0),
        local_prefill=decode_pb2.LOCAL_PREFILL_NEVER,
    )
    async with channel.errors_translated():
        return await decode_pb2_grpc.DecodeStub(channel.grpc).Reserve(
            message, metadata=channel.metadata, timeout=TIMEOUT_S
        )


def _stream(channel: Channel) -> AsyncIterator[decode_pb2.StepOutputs]:
    async def messages() -> AsyncIterator[decode_pb2.StepOutputs]:
        call = decode_pb2_grpc.DecodeStub(channel.grpc).Stream(
            decode_pb2.StreamRequest(router_id="router"), metadata=channel.metadata, timeout=TIMEOUT_S
        )
        async with channel.errors_translated():
            async for message in call:
                yield message

    return messages()


async def test_a_router_without_a_stream_gets_no_memory(decode: tuple[Engine, Channel]) -> None:
    with pytest.raises(Unavailable, match="no stream"):
        await _reserve(decode[1], "router")


async def test_a_stream_shows_signs_of_life_while_nothing_happens(decode: tuple[Engine, Channel]) -> None:
    stream = _stream(decode[1])
    beats = [await anext(stream) for _ in range(3)]
    assert [len(beat.requests) for beat in beats] == [0, 0, 0]
    await decode[1].close()


async def test_a_router_that_comes_back_replaces_its_stream_and_its_old_requests_are_given_up(
    decode: tuple[Engine, Channel],
) -> None:
    engine, channel = decode
    old = _stream(channel)
    await anext(old)
    await _reserve(channel, "router")
    await until(lambda: is_in_use(engine))
    new = _stream(channel)
    await anext(new)
    await until(lambda: not is_in_use(engine))
    assert isinstance(await _wait_for_end(old), Cancelled)
    await _reserve(channel, "router")
    await until(lambda: is_in_use(engine))
    await channel.close()
    await until(lambda: not is_in_use(engine))


async def test_a_router_that_left_too_many_steps_unread_hears_of_its_streams_end_before_them(
    decode: tuple[Engine, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would take the stream for open until it had read them all, and send requests that find none."""
    monkeypatch.setattr("baton.decode.servicer.MAX_UNREAD_STEPS", 50)
    engine, channel = decode
    stream = _stream(channel)
    await anext(stream)
    message = decode_pb2.ReserveRequest(
        router_id="router",
        request=request_to_wire(request(prompt_ids(20), replace(GREEDY, max_tokens=200)), 60.0),
        local_prefill=decode_pb2.LOCAL_PREFILL_ALWAYS,
    )
    stub = decode_pb2_grpc.DecodeStub(channel.grpc)
    await stub.Reserve(message, metadata=channel.metadata, timeout=TIMEOUT_S)
    while is_in_use(engine):
        time.sleep(0.01)  # noqa: ASYNC251 - all that has to carry steps stands still, until the engine is done
    steps, end = await _read_to_end(stream)
    assert isinstance(end, Overloaded)
    assert "50 steps unread" in end.message
    assert sum(len(step.requests) for step in steps) < 50
    again = _stream(channel)
    await anext(again)
    await _reserve(channel, "router")
    await channel.close()


async def test_calls_of_a_closed_channel_fail_by_name_and_do_not_look_like_a_cancellation(
    decode: tuple[Engine, Channel],
) -> None:
    channel = decode[1]
    stream = _stream(channel)
    await anext(stream)
    waiting = asyncio.ensure_future(_wait_for_end(stream))
    await asyncio.sleep(0)
    await channel.close()
    assert isinstance(await waiting, Unavailable)
    with pytest.raises(Unavailable, match="closed"):
        await _reserve(channel, "router")


async def _wait_for_end(stream: AsyncIterator[decode_pb2.StepOutputs]) -> BatonError:
    return (await _read_to_end(stream))[1]


async def _read_to_end(
    stream: AsyncIterator[decode_pb2.StepOutputs],
) -> tuple[list[decode_pb2.StepOutputs], BatonError]:
    steps = []
    try:
        while True:
            steps.append(await anext(stream))
    except BatonError as error:
        return steps, error


async def test_a_background_task_that_ends_is_a_crash_and_one_that_is_cancelled_is_not() -> None:
    crashes: list[BaseException] = []

    async def fail() -> None:
        raise ValueError("a bug")

    async def stop_short() -> None:
        return

    async def go_on() -> None:
        await asyncio.Event().wait()

    going = run_forever(go_on(), "going", crashes.append)
    tasks = [
        run_forever(fail(), "failing", crashes.append),
        run_forever(stop_short(), "short", crashes.append),
    ]
    await asyncio.wait(tasks)
    going.cancel()
    await asyncio.wait([going])
    assert [type(crash) for crash in crashes] == [ValueError, RuntimeError]
