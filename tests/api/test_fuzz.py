"""Whatever a body holds, the answer is a success or a well-shaped refusal, and never a fault of the server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_error import check_shape
from pydantic import BaseModel
from scripted_backend import ScriptedBackend

from baton.router.api.app import create_app
from baton.router.api.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

PATHS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 600),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["user", "assistant", "text", "none", "Hi", "-1", "1e9", "\ud800", "\x00"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "0", "x"]) | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
GOOD: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "prompt": "Hi",
    "tokens": [1, 2],
    "max_tokens": 4,
}


def bodies(path: str) -> st.SearchStrategy[dict[str, Any]]:
    names = sorted(PATHS[path].model_fields)
    good = {
        name: value
        for name, value in GOOD.items()
        if name in names and (path, name) != ("/tokenize", "messages")
    }
    change = st.dictionaries(st.sampled_from(names) | st.text(max_size=5), JSON, max_size=4)
    return change.map(lambda changed: good | changed)


async def post(text: TextProcessor, path: str, content: bytes) -> None:
    app = create_app(ScriptedBackend(), text, ApiSettings())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://baton", timeout=20
    ) as http:
        response = await http.post(path, content=content, headers={"content-type": "application/json"})
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404)
    assert check_shape(response.json())["message"]


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
async def test_any_values_in_known_fields(text: TextProcessor, path: str, data: st.DataObject) -> None:
    body = data.draw(bodies(path))
    await post(text, path, json.dumps(body).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
async def test_any_bytes(text: TextProcessor, path: str, content: bytes) -> None:
    await post(text, path, content)
