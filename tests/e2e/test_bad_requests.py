"""A bad request gets an answer that names the field and the limit; the cluster does not notice."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from cluster import Cluster
from model_folders import VOCAB_SIZE, prompt_ids

CONTEXT_TOKENS = 2048


def assert_refused(response: httpx.Response, status: int, field: str | None, *parts: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == field
    assert error["type"]
    assert error["code"]
    for part in parts:
        assert part in error["message"]


@pytest.mark.parametrize(
    ("fields", "field", "parts"),
    [
        ({"prompt": prompt_ids(CONTEXT_TOKENS)}, "prompt", ["2048"]),
        ({"prompt": prompt_ids(CONTEXT_TOKENS + 1000)}, "prompt", ["2048", "3048"]),
        ({"prompt": prompt_ids(2000), "max_tokens": 49}, "max_tokens", ["2048", "48", "49"]),
        ({"prompt": []}, "prompt", []),
        ({"prompt": [1, 2, VOCAB_SIZE]}, "prompt.2", [str(VOCAB_SIZE)]),
        ({"prompt": [-1]}, "prompt.0", ["-1"]),
        ({"prompt": [1.5]}, "prompt", []),
        ({"prompt": None}, "prompt", []),
        ({"max_tokens": 0}, "max_tokens", []),
        ({"max_tokens": "10"}, "max_tokens", ["10"]),
        ({"min_tokens": 65}, "min_tokens", ["64", "65"]),
        ({"temperature": -0.1}, "temperature", ["-0.1"]),
        ({"temperature": 2.1}, "temperature", ["2.1"]),
        ({"top_p": 0}, "top_p", []),
        ({"top_p": 1.01}, "top_p", ["1.01"]),
        ({"top_k": -2}, "top_k", ["-2"]),
        ({"min_p": 1.5}, "min_p", ["1.5"]),
        ({"presence_penalty": 2.5}, "presence_penalty", ["2.5"]),
        ({"logit_bias": {str(VOCAB_SIZE): 1}}, f"logit_bias.{VOCAB_SIZE}", [str(VOCAB_SIZE)]),
        ({"logit_bias": {"a": 1}}, "logit_bias", ["'a'"]),
        ({"logprobs": 21}, "logprobs", ["20", "21"]),
        ({"stop": ["x"] * 17}, "stop", ["16", "17"]),
        ({"stop": ["x" * 257]}, "stop.0", ["256", "257"]),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids.0", [str(VOCAB_SIZE)]),
        ({"n": 0}, "n", []),
        ({"n": 129}, "n", ["128", "129"]),
        ({"seed": 2**63}, "seed", []),
        ({"stream": "yes"}, "stream", ["yes"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_named_with_its_limit(
    cluster: Cluster, fields: dict[str, Any], field: str, parts: list[str]
) -> None:
    response = cluster.post(**({"prompt": prompt_ids(5)} | fields))
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    error = response.json()["error"]
    assert (error["param"] or "").split(".")[0] == field.split(".")[0]
    assert_refused(response, 400, error["param"] if "." not in field else field, *parts)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"prompt": "\xc3\x28"}', b'{"prompt": [1], "temperature": NaN}'],
    ids=repr,
)
def test_a_body_that_is_no_json_object_is_refused(cluster: Cluster, content: bytes) -> None:
    response = cluster.client.post(
        "/v1/completions", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_found(cluster: Cluster) -> None:
    response = cluster.post(prompt_ids(5), model="gpt-none")
    assert_refused(response, 404, "model", "gpt-none", "llama")


def test_a_body_over_the_limit_is_too_large(cluster: Cluster) -> None:
    response = cluster.post("a" * (9 << 20))
    assert response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_long_text_is_refused_before_it_is_tokenized(cluster: Cluster) -> None:
    assert_refused(cluster.post("word " * 200_000), 400, "prompt", str(CONTEXT_TOKENS))
