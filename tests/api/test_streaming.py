"""The event stream, byte for byte where clients depend on it, and truthful endings."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from scripted_backend import ScriptedBackend

from baton.errors import DeadlineExceeded, HandoffFailed, Unavailable, WorkerFailed

Says = Callable[[str], Awaitable[None]]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "stream": True}
COMPLETION: dict[str, Any] = {"prompt": "Hi", "temperature": 0, "stream": True}


async def events(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    """The data of each event; [DONE] as it is."""
    response = await http.post(path, json=body)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    parts = response.content.split(b"\n\n")
    assert parts[-1] == b""
    assert all(part.startswith(b"data: ") for part in parts[:-1])
    return [part[6:] if part == b"data: [DONE]" else json.loads(part[6:]) for part in parts[:-1]]


async def test_chat_events(http: httpx.AsyncClient, says: Says) -> None:
    await says("abc")
    first, *chunks, done = await events(http, "/v1/chat/completions", CHAT)
    common = {
        "id": first["id"],
        "object": "chat.completion.chunk",
        "created": first["created"],
        "model": "org/scripted",
    }
    no_logprobs = {"index": 0, "logprobs": None, "finish_reason": None}
    assert first["id"].startswith("chatcmpl-")
    assert first == common | {"choices": [no_logprobs | {"delta": {"role": "assistant", "content": ""}}]}
    assert chunks[0] == common | {"choices": [no_logprobs | {"delta": {"content": "a"}}]}
    ending = {"index": 0, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    assert chunks[-1] == common | {"choices": [ending | {"delta": {"content": ""}}]}
    assert done == b"[DONE]"


async def test_completion_events(http: httpx.AsyncClient, says: Says) -> None:
    await says("abc")
    *chunks, done = await events(http, "/v1/completions", COMPLETION)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c", ""]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert not any("usage" in chunk for chunk in chunks)
    assert done == b"[DONE]"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)])
async def test_usage_comes_last_and_is_null_before(
    http: httpx.AsyncClient, says: Says, backend: ScriptedBackend, path: str, body: dict[str, Any]
) -> None:
    await says("abc")
    backend.cached_tokens = 1
    *chunks, last, done = await events(http, path, body | {"stream_options": {"include_usage": True}})
    assert {repr(chunk["usage"]) for chunk in chunks} == {"None"}
    prompt_tokens = len(backend.requests[0].token_ids)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 4,
        "total_tokens": prompt_tokens + 4,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert done == b"[DONE]"


async def test_continuous_usage_counts_up(http: httpx.AsyncClient, says: Says) -> None:
    await says("abc")
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, _ = await events(http, "/v1/completions", COMPLETION | {"stream_options": options})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4]


async def test_echo_opens_the_stream(http: httpx.AsyncClient, says: Says) -> None:
    await says("abc")
    *chunks, _ = await events(http, "/v1/completions", COMPLETION | {"prompt": ["x y", "z"], "echo": True})
    assert [chunk["choices"][0]["text"] for chunk in chunks[:2]] == ["x y", "z"]


async def test_half_a_character_is_never_sent(http: httpx.AsyncClient, says: Says) -> None:
    await says("👩‍👩‍👧🎉東京")
    *chunks, _ = await events(http, "/v1/completions", COMPLETION | {"max_tokens": 100})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "👩‍👩‍👧🎉東京"
    assert not any("\ufffd" in chunk["choices"][0]["text"] for chunk in chunks)


@pytest.mark.parametrize("prompt", ["Hi", ["Hi", "Ho"]])
async def test_a_failure_in_the_stream_ends_it_without_done(
    http: httpx.AsyncClient, backend: ScriptedBackend, prompt: str | list[str]
) -> None:
    backend.fail_at, backend.error = 3, HandoffFailed("the KV blocks did not arrive")
    *_, last = await events(http, "/v1/completions", {"prompt": prompt, "stream": True})
    assert last == {
        "error": {
            "message": "the KV blocks did not arrive",
            "type": "server_error",
            "param": None,
            "code": "handoff_failed",
        }
    }


async def test_a_choice_without_an_ending_is_an_error(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    """An aborted leg must not look like a short success."""
    backend.ends_silently_at = 2
    *_, last = await events(http, "/v1/completions", {"prompt": "Hi", "stream": True})
    assert last["error"]["code"] == "worker_failed"
    response = await http.post("/v1/completions", json={"prompt": "Hi"})
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "worker_failed"


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("fail_at", [-1, 0])
@pytest.mark.parametrize(
    ("error", "status"),
    [(Unavailable("no"), 503), (DeadlineExceeded("late"), 504), (WorkerFailed("dead"), 500)],
)
async def test_a_failure_before_the_first_token_is_a_status(
    http: httpx.AsyncClient,
    backend: ScriptedBackend,
    is_stream: bool,
    fail_at: int,
    error: Unavailable | DeadlineExceeded | WorkerFailed,
    status: int,
) -> None:
    backend.fail_at, backend.error = fail_at, error
    response = await http.post("/v1/completions", json={"prompt": ["a", "b"], "stream": is_stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == error.code


async def test_a_failure_while_collecting_is_a_status(
    http: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    backend.fail_at, backend.error = 5, WorkerFailed("dead")
    assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 500


async def test_a_bug_of_ours_breaks_the_connection_instead_of_ending_the_stream(
    http: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.fail_at, backend.error = 3, RuntimeError("a bug")
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post("/v1/completions", json={"prompt": "Hi", "stream": True})
    assert "a bug" in caplog.text


async def test_a_bug_of_ours_tells_the_client_nothing(
    http: httpx.AsyncClient, backend: ScriptedBackend, caplog: pytest.LogCaptureFixture
) -> None:
    backend.fail_at, backend.error = -1, RuntimeError("a secret")
    response = await http.post("/v1/completions", json={"prompt": "Hi"}, headers={"x-request-id": "me"})
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "internal error",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert response.headers["x-request-id"] == "me"
    assert "a secret" in caplog.text


async def test_headers_wait_for_the_route(http: httpx.AsyncClient, says: Says) -> None:
    await says("abc")
    for body in (CHAT, CHAT | {"stream": False}):
        response = await http.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
        assert response.headers["x-baton-prefill"] == "prefill-0"
        assert response.headers["x-baton-decode"] == "decode-0"
        assert response.headers["x-request-id"] == "mine"
