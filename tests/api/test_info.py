"""Models, health, workers, metrics, keys and request ids."""

from __future__ import annotations

import httpx
import pytest
from scripted_backend import ScriptedBackend

from baton import __version__
from baton.router.api.app import create_app
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

OPEN = ["/health", "/ready", "/live"]
GUARDED = [
    "/v1/models",
    "/v1/models/scripted",
    "/workers",
    "/server_info",
    "/metrics",
    "/version",
    "/openapi.json",
]


def client_of(backend: ScriptedBackend, text: TextProcessor, settings: ApiSettings) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(backend, text, settings))
    return httpx.AsyncClient(transport=transport, base_url="http://baton")


async def test_models_are_listed_under_every_name(direct: httpx.AsyncClient) -> None:
    listed = (await direct.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["org/scripted", "scripted"]
    assert listed["data"][1] == {
        "id": "scripted",
        "object": "model",
        "created": 1_790_000_000,
        "owned_by": "baton",
        "root": "org/scripted",
        "parent": None,
        "max_model_len": 256,
    }
    assert (await direct.get("/v1/models/org/scripted")).json() == listed["data"][0]
    missing = await direct.get("/v1/models/gpt")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_health_follows_the_backend(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    for path in OPEN:
        assert (await direct.get(path)).status_code == 200
    backend.is_up = False
    for path in OPEN:
        response = await direct.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


async def test_workers_and_server_info(direct: httpx.AsyncClient) -> None:
    workers = (await direct.get("/workers")).json()["workers"]
    assert workers == [{"id": "prefill-0", "role": "prefill"}, {"id": "decode-0", "role": "decode"}]
    assert (await direct.get("/server_info")).json() == {"version": __version__, "model": "org/scripted"}
    assert (await direct.get("/version")).json() == {"version": __version__}


async def test_metrics_are_prometheus_text(http: httpx.AsyncClient, direct: httpx.AsyncClient) -> None:
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.text == "up 1\n"
    assert (await direct.get("/metrics")).text == ""


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic second", "second", "Bearer second2"],
)
async def test_without_a_key_only_health_is_open(
    backend: ScriptedBackend, text: TextProcessor, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    async with client_of(backend, text, ApiSettings(api_keys=("first", "second"))) as http:
        for path in OPEN:
            assert (await http.get(path, headers=headers)).status_code == 200
        for path in GUARDED:
            response = await http.get(path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.headers["x-request-id"]
            assert response.json()["error"]["type"] == "authentication_error"
        assert (await http.post("/v1/completions", json={"prompt": "Hi"}, headers=headers)).status_code == 401
    assert backend.requests == []


@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second", "Bearer schlüssel"])
async def test_each_key_opens_everything(
    backend: ScriptedBackend, text: TextProcessor, authorization: str
) -> None:
    keys = ("first", "second", "schlüssel")
    async with client_of(backend, text, ApiSettings(api_keys=keys)) as http:
        for path in GUARDED:
            response = await http.get(path, headers={b"authorization": authorization.encode()})
            assert response.status_code == 200


@pytest.mark.parametrize("given", ["", "x" * 513, "caf\u00e9", "a\tb"])
async def test_a_request_id_that_cannot_be_echoed_is_replaced(direct: httpx.AsyncClient, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1"))]
    answers = [await direct.get("/version", headers=headers) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert given not in ids


async def test_request_id_is_echoed_on_refusals_too(direct: httpx.AsyncClient) -> None:
    for path, body in (("/v1/completions", {}), ("/v1/completions", {"prompt": "Hi"}), ("/nowhere", {})):
        response = await direct.post(path, json=body, headers={"x-request-id": "mine-1"})
        assert response.headers.get_list("x-request-id") == ["mine-1"]


async def test_the_reference_shows_every_path_and_field(direct: httpx.AsyncClient) -> None:
    reference = (await direct.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/health", "/workers"} <= set(
        reference["paths"]
    )
    fields = reference["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    assert {"messages", "top_k", "cache_salt", "return_token_ids"} <= set(fields)
    for operations in reference["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert "422" not in operation["responses"]
    answers = reference["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert "text/event-stream" in answers["200"]["content"]


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_no_page_is_served_that_loads_scripts_from_elsewhere(
    direct: httpx.AsyncClient, page: str
) -> None:
    assert (await direct.get(page)).status_code == 404
