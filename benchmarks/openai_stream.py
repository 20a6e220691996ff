"""A client that streams one answer of an OpenAI-compatible server and notes when each piece arrived."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import msgspec
from latency import Outcome

Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class ServerUnusable(Exception):
    """The server cannot be measured at all; the message says what it answered to what."""


class _BadStream(Exception):
    """The server broke off or garbled its answer; the message is the kind of failure."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test. timeout_s: for one whole request. extra: further fields of each request body."""

    client: httpx.AsyncClient
    model: str
    endpoint: Endpoint
    timeout_s: float
    extra: dict[str, Any]

    def body(self, prompt: str | list[int], output_tokens: int, *, stream: bool = True) -> bytes:
        fields: dict[str, Any] = {
            "model": self.model,
            "max_tokens": output_tokens,
            "stream": stream,
            **self.extra,
        }
        if stream:
            fields["stream_options"] = {"include_usage": True}
        if self.endpoint == "chat":
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        return msgspec.json.encode(fields)


async def stream(target: Target, body: bytes) -> Outcome:
    """Sends one request and reads its answer to the end. A failure is an outcome too, named by HTTP status or
    by kind; nothing is raised for what the server or the network does."""
    outcome = Outcome(sent_at_s=time.perf_counter())
    try:
        async with asyncio.timeout(target.timeout_s):
            await _read(target, body, outcome)
    except (TimeoutError, httpx.TimeoutException):
        outcome.error = "timeout"
    except httpx.ConnectError:
        outcome.error = "no connection"
    except httpx.TransportError as error:
        outcome.error = f"connection lost ({type(error).__name__})"
    except _BadStream as error:
        outcome.error = str(error)
    outcome.ended_at_s = time.perf_counter()
    if not outcome.has_usage:
        outcome.output_tokens = len(outcome.text_at_s)
    return outcome


async def _read(target: Target, body: bytes, outcome: Outcome) -> None:
    headers = {"content-type": "application/json"}
    async with target.client.stream(
        "POST", PATHS[target.endpoint], content=body, headers=headers
    ) as response:
        if response.status_code != 200:
            raise _BadStream(f"HTTP {response.status_code}")
        is_finished = False
        async for arrived_at_s, chunk in _chunks(response):
            if "error" in chunk:
                raise _BadStream(f"error in stream ({_error_name(chunk['error'])})")
            for choice in chunk.get("choices") or ():
                if _has_text(choice):
                    outcome.text_at_s.append(arrived_at_s)
                is_finished |= choice.get("finish_reason") is not None
            _note_usage(chunk.get("usage"), outcome)
        if not is_finished:
            raise _BadStream("stream ended without finish_reason")


async def _chunks(response: httpx.Response) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """The JSON objects of a server-sent event stream, with the time at which each arrived.

    Reads on after [DONE], to the end of the response: only so is the connection used again.
    """
    buffer = b""
    is_done = False
    async for received in response.aiter_bytes():
        arrived_at_s = time.perf_counter()
        *lines, buffer = (buffer + received).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            is_done |= data == b"[DONE]"
            if data and not is_done:
                yield arrived_at_s, _decode(data)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict)
    except msgspec.DecodeError as error:
        raise _BadStream("malformed event") from error


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(
        choice.get("text")
        or delta.get("content")
        or delta.get("reasoning_content")
        or delta.get("tool_calls")
    )


def _note_usage(usage: dict[str, Any] | None, outcome: Outcome) -> None:
    if usage:
        outcome.has_usage = True
        outcome.prompt_tokens = usage.get("prompt_tokens", 0)
        outcome.output_tokens = usage.get("completion_tokens", 0)
        outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _error_name(error: object) -> object:
    return (error.get("code") or error.get("type") or "unnamed") if isinstance(error, dict) else error


async def first_model(client: httpx.AsyncClient) -> str:
    """The id of the first model that the server lists. Raises ServerUnusable."""
    answer = await _answer(client, "GET", "/v1/models")
    try:
        return str(answer["data"][0]["id"])
    except (KeyError, IndexError, TypeError) as error:
        raise ServerUnusable(f"GET /v1/models lists no model: {answer}") from error


async def prompt_tokens_of(target: Target, prompt: str) -> int | None:
    """How many tokens the server makes of `prompt`, template included; None where it does not tell.

    Raises ServerUnusable.
    """
    body = target.body(prompt, 1, stream=False)
    answer = await _answer(target.client, "POST", PATHS[target.endpoint], body)
    count = (answer.get("usage") or {}).get("prompt_tokens")
    return count if isinstance(count, int) else None


async def tokenize(client: httpx.AsyncClient, model: str, text: str) -> list[int] | None:
    """The token ids of `text`, or None where the server has no `/tokenize` as vLLM and Baton have it."""
    body = msgspec.json.encode({"model": model, "prompt": text, "add_special_tokens": False})
    try:
        answer = await _answer(client, "POST", "/tokenize", body)
    except ServerUnusable:
        return None
    tokens = answer.get("tokens")
    return tokens if isinstance(tokens, list) and tokens else None


async def _answer(
    client: httpx.AsyncClient, method: str, path: str, body: bytes | None = None
) -> dict[str, Any]:
    try:
        response = await client.request(
            method, path, content=body, headers={"content-type": "application/json"}
        )
    except httpx.TransportError as error:
        raise ServerUnusable(
            f"{method} {client.base_url.join(path)}: {error or type(error).__name__}"
        ) from error
    if response.status_code != 200:
        raise ServerUnusable(f"{method} {path} answered {response.status_code}: {response.text[:300]}")
    try:
        return msgspec.json.decode(response.content, type=dict)
    except msgspec.DecodeError as error:
        raise ServerUnusable(f"{method} {path} answered no JSON object: {response.text[:300]}") from error
