"""POST /finish_session: how a session is named, whose it is, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError
from openai_error import check_shape
from scripted_backend import ScriptedBackend

from baton.router.api.app import create_app
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

PATH = "/finish_session"
HEADER = {"X-Session-ID": "a"}


@pytest.mark.parametrize(
    ("headers", "body", "query", "also_named"),
    [
        ({}, {"session_id": "a"}, {}, {"session_id": "a"}),
        ({}, {"user": "a"}, {}, {"user": "a"}),
        (HEADER, {}, {}, {"session_id": "a"}),
        ({"X-SMG-Routing-Key": "a"}, {"session_id": "b"}, {"session_id": "c"}, {"session_id": "a"}),
        ({}, None, {"session_id": "a"}, {"session_id": "a"}),
        ({"X-Tenant-ID": "t"}, {"session_id": "a"}, {}, {"session_id": "a"}),
        ({}, {"session_id": "a", "cache_salt": "s"}, {}, {"session_id": "a", "cache_salt": "s"}),
    ],
)
async def test_the_session_is_named_as_in_its_requests(
    direct: httpx.AsyncClient,
    backend: ScriptedBackend,
    headers: dict[str, str],
    body: dict[str, Any] | None,
    query: dict[str, str],
    also_named: dict[str, Any],
) -> None:
    tenant = {name: value for name, value in headers.items() if name == "X-Tenant-ID"}
    completion = {"prompt": "Hi", "max_tokens": 1} | also_named
    assert (await direct.post("/v1/completions", json=completion, headers=tenant)).status_code == 200
    answer = await direct.post(PATH, json=body, params=query, headers=headers)
    assert (answer.status_code, answer.json()["blocks"]) == (200, 3)
    assert backend.finished_sessions == [backend.requests[-1].session_key]


@pytest.mark.parametrize(
    "headers", [{"X-Tenant-ID": "t"}, {"X-Session-ID": "b"}, {"X-Session-ID": "a", "X-Tenant-ID": "ta"}]
)
async def test_nobody_finishes_a_session_of_another_tenant_or_name(
    direct: httpx.AsyncClient, backend: ScriptedBackend, headers: dict[str, str]
) -> None:
    await direct.post("/v1/completions", json={"prompt": "Hi", "session_id": "a", "max_tokens": 1})
    await direct.post(PATH, json={"session_id": "a"}, headers=headers)
    assert backend.finished_sessions != [backend.requests[-1].session_key]


async def test_the_owner_of_one_key_does_not_finish_sessions_of_another_key(
    backend: ScriptedBackend, text: TextProcessor
) -> None:
    transport = httpx.ASGITransport(create_app(backend, text, ApiSettings(api_keys=("one", "two"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://baton") as http:
        answers = [
            await http.post(PATH, headers=HEADER | {"authorization": f"Bearer {key}"})
            for key in ("one", "two", "wrong")
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 401]
    assert check_shape(answers[-1].json())["type"] == "authentication_error"
    assert len(set(backend.finished_sessions)) == 2


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({}, "session_id"),
        ({"json": {}}, "session_id"),
        ({"json": {"session_id": None}}, "session_id"),
        ({"json": {"session_id": ""}}, "session_id"),
        ({"json": {"session_id": 5}}, "session_id"),
        ({"json": {"session_id": "x" * 513}}, "session_id"),
        ({"params": {"session_id": ""}}, "session_id"),
        ({"params": {"session_id": "x" * 513}}, "session_id"),
        ({"headers": {"X-Session-ID": "x" * 513}}, "x-session-id"),
        ({"json": ["a"]}, None),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, None),
        ({"content": b"session_id=a"}, "content-type"),
    ],
)
async def test_what_names_no_session_is_refused(
    direct: httpx.AsyncClient, backend: ScriptedBackend, arguments: dict[str, Any], param: str | None
) -> None:
    answer = await direct.post(PATH, **arguments)
    assert answer.status_code == 400
    assert check_shape(answer.json())["param"] == param
    assert backend.finished_sessions == []


async def test_the_openai_client_reaches_it_below_its_base_url(
    client: AsyncOpenAI, backend: ScriptedBackend
) -> None:
    answer = await client.post(PATH, body={"session_id": "a"}, cast_to=dict[str, Any])
    assert answer == {"blocks": 3, "workers": {"decode-0": 3}, "unconfirmed": []}
    named_by_header = await client.post(PATH, cast_to=dict[str, Any], options={"headers": HEADER})
    assert named_by_header == answer
    assert len(set(backend.finished_sessions)) == 1
    with pytest.raises(BadRequestError, match="session_id: missing"):
        await client.post(PATH, body={}, cast_to=dict[str, Any])
