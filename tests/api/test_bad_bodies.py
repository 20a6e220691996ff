"""Bodies that are no JSON, no UTF-8, of another type or too large are refused while they are read."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from openai_error import check_shape
from scripted_backend import ScriptedBackend

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"prompt": "Hi",}',
        b'{"prompt": "Hi"} x',
        b'{"prompt": "Hi", "temperature": NaN}',
        b'{"prompt": "Hi", "temperature": Infinity}',
        b'{"prompt": "Hi", "unknown": -Infinity}',
        b'{"prompt": "Hi", "temperature": 1e999}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud800 and more"}',
        b'{"prompt": "and more \\udc00"}',
        b'{"\\ud800xxxxxx": 1, "prompt": "Hi"}',
        b'{"unknown": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"unknown": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        "{}".encode("utf-16"),
        b'\xef\xbb\xbf{"prompt": "Hi"}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETION, "/tokenize", "/detokenize"])
async def test_what_is_no_json_is_refused(
    direct: httpx.AsyncClient, backend: ScriptedBackend, path: str, content: bytes
) -> None:
    response = await direct.post(path, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    check_shape(response.json())
    assert backend.requests == []


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json"])
async def test_another_content_type_is_refused(direct: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    response = await direct.post(COMPLETION, content=b'{"prompt": "Hi"}', headers=headers)
    assert response.status_code == 400
    assert check_shape(response.json())["param"] == "content-type"


async def test_content_type_may_have_a_charset(direct: httpx.AsyncClient) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert (await direct.post(COMPLETION, content=b'{"prompt": "Hi"}', headers=headers)).status_code == 200


async def test_a_declared_body_over_the_limit_is_not_read(http: httpx.AsyncClient) -> None:
    response = await http.post(COMPLETION, json={"prompt": "x" * 9_000_000})
    assert response.status_code == 413
    error = check_shape(response.json())
    assert error["code"] == "request_too_large"
    assert "8388608 bytes" in error["message"]


async def test_a_chunked_body_is_answered_at_the_limit(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    headers = "host: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    writer.write(f"POST {COMPLETION} HTTP/1.1\r\n{headers}".encode())
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    for _ in range(9):
        writer.write(chunk)
        await writer.drain()
    assert b"413" in await asyncio.wait_for(reader.readline(), 10)
    writer.write(chunk + b"0\r\n\r\n")  # the rest is thrown away and the connection goes on
    writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readuntil(b"HTTP/1.1 200")
    writer.close()
