"""A client that goes away, at any moment, leaves nothing running."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from scripted_backend import ScriptedBackend


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    content = json.dumps(body).encode()
    headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return f"POST {path} HTTP/1.1\r\n{headers}".encode() + content


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
@pytest.mark.parametrize("stall_at", [-1, 0, 1, 5])
@pytest.mark.parametrize("is_abrupt", [True, False])
async def test_a_closed_connection_releases_the_request(
    url: str,
    backend: ScriptedBackend,
    is_stream: bool,
    prompt: str | list[str],
    stall_at: int,
    is_abrupt: bool,
) -> None:
    backend.stall_at = stall_at
    reader, writer = await connect(url)
    writer.write(request_bytes({"prompt": prompt, "stream": is_stream, "max_tokens": 100}))
    await asyncio.wait_for(backend.is_stalled.wait(), 10)
    assert backend.open == (1 if isinstance(prompt, str) else 3)
    if is_stream and stall_at > 0:
        assert b"200 OK" in await reader.readline()
    if is_abrupt:
        writer.transport.abort()
    else:
        writer.close()
    await backend.until(is_open=False)


async def test_a_closed_connection_releases_a_running_stream(url: str, backend: ScriptedBackend) -> None:
    reader, writer = await connect(url)
    writer.write(
        request_bytes({"prompt": "a", "stream": True, "max_tokens": 200, "n": 100, "ignore_eos": True})
    )
    await reader.readuntil(b"data: ")
    writer.transport.abort()
    await backend.until(is_open=False)
    assert backend.outputs_given < 200 * 100


async def test_a_client_that_does_not_read_holds_up_only_itself(url: str, backend: ScriptedBackend) -> None:
    body = {
        "prompt": "a",
        "stream": True,
        "max_tokens": 200,
        "n": 128,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    _, slow = await connect(url)
    slow.write(request_bytes(body))
    await backend.until(is_open=True)
    reader, writer = await connect(url)
    writer.write(request_bytes({"prompt": "a", "temperature": 0}))
    assert b"200 OK" in await reader.readline()
    slow.transport.abort()
    writer.close()
    await backend.until(is_open=False)


async def test_the_connection_serves_the_next_request(url: str, backend: ScriptedBackend) -> None:
    reader, writer = await connect(url)
    for is_stream in (True, False, True):
        writer.write(request_bytes({"prompt": "a", "temperature": 0, "stream": is_stream}))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        if is_stream:
            await reader.readuntil(b"0\r\n\r\n")
        else:
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        await backend.until(is_open=False)
    writer.close()


async def test_a_connection_closed_in_the_middle_of_the_body_starts_nothing(
    url: str, backend: ScriptedBackend
) -> None:
    _, writer = await connect(url)
    writer.write(request_bytes({"prompt": "a" * 5000})[:300])
    await writer.drain()
    await asyncio.sleep(0)
    writer.transport.abort()
    reader, writer = await connect(url)
    writer.write(request_bytes({"prompt": "a", "temperature": 0}))
    assert b"200 OK" in await reader.readline()
    writer.close()
    assert len(backend.requests) == 1


async def test_the_log_says_499(url: str, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "baton.router.api")
    backend.stall_at = 0
    _, writer = await connect(url)
    writer.write(request_bytes({"prompt": "a"}))
    await asyncio.wait_for(backend.is_stalled.wait(), 10)
    writer.transport.abort()
    await backend.until(is_open=False)
    async with asyncio.timeout(10):
        while "499" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
