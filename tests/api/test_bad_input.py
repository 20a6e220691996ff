"""Every bad request is refused before a worker sees it, and the answer names the field."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai_error import check_shape
from scripted_backend import ScriptedBackend

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]

# field as the answer names it, body changed, what the message tells of value or limit
BOTH: list[tuple[str, dict[str, Any], str]] = [
    ("temperature", {"temperature": 2.5}, "less than or equal to 2, not 2.5"),
    ("temperature", {"temperature": -0.1}, "not -0.1"),
    ("temperature", {"temperature": "1"}, "valid number, not '1'"),
    ("temperature", {"temperature": True}, "not True"),
    ("temperature", {"temperature": 10**400}, "temperature"),
    ("top_p", {"top_p": 0}, "greater than 0, not 0"),
    ("top_p", {"top_p": 1.01}, "not 1.01"),
    ("top_k", {"top_k": -2}, "not -2"),
    ("top_k", {"top_k": 2**40}, str(2**40)),
    ("min_p", {"min_p": 1.5}, "not 1.5"),
    ("repetition_penalty", {"repetition_penalty": 0}, "not 0"),
    ("presence_penalty", {"presence_penalty": 2.1}, "not 2.1"),
    ("frequency_penalty", {"frequency_penalty": -3}, "not -3"),
    ("max_tokens", {"max_tokens": 0}, "greater than or equal to 1, not 0"),
    ("max_tokens", {"max_tokens": 1.5}, "not 1.5"),
    ("max_tokens", {"max_tokens": 10**30}, "not 1000"),
    ("max_tokens", {"max_tokens": 10**5000}, ""),
    ("max_tokens", {"max_tokens": 256}, "maximum context length is 256 tokens"),
    ("min_tokens", {"min_tokens": -1}, "not -1"),
    ("min_tokens", {"min_tokens": 6, "max_tokens": 5}, "at most max_tokens (5), not 6"),
    ("n", {"n": 0}, "not 0"),
    ("n", {"n": 129}, "at most 128 choices, not 129"),
    ("seed", {"seed": 2**63}, str(2**63)),
    ("seed", {"seed": "x"}, "not 'x'"),
    ("stop", {"stop": ""}, "at least 1 character"),
    ("stop", {"stop": 3}, "valid string, not 3"),
    ("stop", {"stop": "x" * 257}, "at most 256 characters, not 257"),
    ("stop.1", {"stop": ["a", ""]}, "at least 1 character"),
    ("stop.1", {"stop": ["a", "x" * 300]}, "at most 256 characters, not 300"),
    ("stop", {"stop": ["a"] * 17}, "at most 16 strings, not 17"),
    ("stop_token_ids.1", {"stop_token_ids": [1, 512]}, "below 512, not 512"),
    ("stop_token_ids.0", {"stop_token_ids": [-1]}, "not -1"),
    ("stop_token_ids", {"stop_token_ids": [1] * 129}, "at most 128 ids, not 129"),
    ("logit_bias", {"logit_bias": {"a": 1}}, "'a'"),
    ("logit_bias", {"logit_bias": {"-1": 1}}, "'-1'"),
    ("logit_bias", {"logit_bias": {"²": 1}}, "'²'"),
    ("logit_bias.512", {"logit_bias": {"512": 1}}, "below 512, not 512"),
    ("logit_bias.5", {"logit_bias": {"5": 101}}, "not 101"),
    ("logit_bias", {"logit_bias": {str(i): 1 for i in range(1025)}}, "at most 1024 entries, not 1025"),
    ("logit_bias", {"logit_bias": [1]}, "a list of 1 entries"),
    ("stream", {"stream": "yes"}, "not 'yes'"),
    ("stream_options", {"stream_options": {"include_usage": True}}, "stream is true"),
    ("stream_options.include_usage", {"stream": True, "stream_options": {"include_usage": 1}}, "not 1"),
    ("ignore_eos", {"ignore_eos": 1}, "not 1"),
    ("priority", {"priority": 2**31}, str(2**31)),
    ("cache_salt", {"cache_salt": ""}, "at least 1 character"),
    ("session_id", {"session_id": "x" * 513}, "at most 512 characters"),
    ("user", {"user": 5}, "not 5"),
    ("model", {"model": 5}, "not 5"),
    ("response_format", {"response_format": {"type": "json_object"}}, "not supported"),
    ("structured_outputs", {"structured_outputs": {"regex": "a"}}, "not supported"),
    ("guided_json", {"guided_json": {}}, "not supported"),
    ("use_beam_search", {"use_beam_search": True}, "only null or False"),
    ("prompt_logprobs", {"prompt_logprobs": 1}, "not supported"),
    ("bad_words", {"bad_words": ["a"]}, "not supported"),
]

IN_COMPLETION: list[tuple[str, dict[str, Any], str]] = [
    ("prompt", {"prompt": None}, "Field required"),
    ("prompt", {"prompt": ""}, "at least 1 character"),
    ("prompt", {"prompt": []}, "at least 1 item"),
    ("prompt", {"prompt": 5}, "not 5"),
    ("prompt", {"prompt": {"a": 1}}, "an object of 1 entries"),
    ("prompt.1", {"prompt": ["a", 5]}, "not 5"),
    ("prompt.1", {"prompt": ["a", ""]}, "at least 1 character"),
    ("prompt.1", {"prompt": [5, "a"]}, "not 'a'"),
    ("prompt.0", {"prompt": [True]}, "not True"),
    ("prompt.1", {"prompt": [5, -1]}, "not -1"),
    ("prompt.1", {"prompt": [5, 512]}, "below 512, not 512"),
    ("prompt.1.0", {"prompt": [[5], [600]]}, "below 512, not 600"),
    ("prompt.0", {"prompt": [[]]}, "at least 1 item"),
    ("prompt", {"prompt": [5] * 256}, "maximum context length is 256 tokens"),
    ("prompt.1", {"prompt": [[5], [5] * 300]}, "the prompt has 300"),
    ("prompt", {"prompt": "東京 " * 300}, "maximum context length"),
    ("prompt", {"prompt": "x" * 100_000}, "the prompt has at least"),
    ("prompt", {"prompt": ["a"] * 129}, "at most 128 prompts, not 129"),
    ("n", {"prompt": ["a"] * 100, "n": 3}, "at most 256 sequences"),
    ("logprobs", {"logprobs": 21}, "at most 20, not 21"),
    ("logprobs", {"logprobs": True}, "not True"),
    ("echo", {"echo": True, "logprobs": 1}, "logprobs of the prompt"),
    ("best_of", {"best_of": 3, "n": 2}, "only the value of n (2)"),
    ("suffix", {"suffix": "end"}, "not supported"),
]

IN_CHAT: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": None}, "Field required"),
    ("messages", {"messages": []}, "at least 1 item"),
    ("messages", {"messages": "Hi"}, "valid list, not 'Hi'"),
    ("messages.0", {"messages": ["Hi"]}, "not 'Hi'"),
    ("messages.0.role", {"messages": [{"content": "x"}]}, "Field required"),
    ("messages.0.role", {"messages": [{"role": "robot", "content": "x"}]}, "not 'robot'"),
    ("messages.1.content", {"messages": [*MESSAGES, {"role": "user"}]}, "Field required"),
    ("messages.0.content", {"messages": [{"role": "user", "content": 5}]}, "not 5"),
    ("messages.0.content", {"messages": [{"role": "user", "content": []}]}, "at least 1 item"),
    (
        "messages.0.content.1.type",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
        "'text', not 'image_url'",
    ),
    ("messages", {"messages": [{"role": "user", "content": "東京 " * 300}]}, "maximum context length"),
    ("max_completion_tokens", {"max_completion_tokens": 256}, "maximum context length is 256 tokens"),
    ("top_logprobs", {"top_logprobs": 2}, "logprobs must be true"),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}, "at most 20, not 21"),
    ("logprobs", {"logprobs": 3}, "not 3"),
    ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "not supported"),
    ("tool_choice", {"tool_choice": "auto"}, "only null or none"),
    ("functions", {"functions": [{"name": "f"}]}, "not supported"),
    ("modalities", {"modalities": ["text", "audio"]}, "not supported"),
    ("audio", {"audio": {"voice": "alloy", "format": "wav"}}, "not supported"),
    ("chat_template", {"chat_template": "{{ 1 }}"}, "not supported"),
    ("chat_template_kwargs.messages", {"chat_template_kwargs": {"messages": []}}, "set by the server"),
    (
        "chat_template_kwargs.x",
        {"chat_template_kwargs": {"x": json.loads("[" * 50 + "]" * 50)}},
        "deeper than 32",
    ),
    ("continue_final_message", {"continue_final_message": True}, "add_generation_prompt must be false"),
]

CASES = [
    *((COMPLETION, {"prompt": "Hi"}, *case) for case in BOTH + IN_COMPLETION),
    *((CHAT, {"messages": MESSAGES}, *case) for case in BOTH + IN_CHAT),
]


@pytest.mark.parametrize(("path", "good", "field", "change", "told"), CASES)
async def test_the_answer_names_field_value_and_limit(
    direct: httpx.AsyncClient,
    backend: ScriptedBackend,
    path: str,
    good: dict[str, Any],
    field: str,
    change: dict[str, Any],
    told: str,
) -> None:
    with_any_integer = json.dumps({k: v for k, v in (good | change).items() if k != "max_tokens"})[:-1]
    if "max_tokens" in change:
        value = change["max_tokens"]
        digits = "1" + "0" * 5000 if value == 10**5000 else json.dumps(value)
        with_any_integer += f', "max_tokens": {digits}'
    response = await direct.post(
        path, content=with_any_integer + "}", headers={"content-type": "application/json"}
    )
    error = check_shape(response.json())
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    if told:
        assert error["param"] == field
        assert error["message"].startswith(f"{field}: ")
        assert told in error["message"]
    assert backend.requests == []


async def test_unknown_fields_are_ignored(direct: httpx.AsyncClient) -> None:
    body = {"messages": MESSAGES, "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "x": [1, {}]}
    assert (await direct.post(CHAT, json=body)).status_code == 200


async def test_null_means_left_out(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    names = [
        "temperature",
        "n",
        "stop",
        "seed",
        "logit_bias",
        "stream",
        "tools",
        "ignore_eos",
        "user",
        "model",
    ]
    response = await direct.post(CHAT, json={"messages": MESSAGES, **dict.fromkeys(names)})
    assert response.status_code == 200
    assert backend.requests[0].sampling.temperature == 1.0


async def test_values_that_leave_the_result_as_it_is_are_taken(direct: httpx.AsyncClient) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
    }
    assert (await direct.post(CHAT, json={"messages": MESSAGES, **neutral})).status_code == 200
    body = {"prompt": "Hi", "suffix": "", "n": 2, "best_of": 2}
    assert (await direct.post(COMPLETION, json=body)).status_code == 200


async def test_an_unknown_model_is_404(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    for path, body in (
        (CHAT, {"messages": MESSAGES}),
        (COMPLETION, {"prompt": "a"}),
        ("/tokenize", {"prompt": "a"}),
    ):
        response = await direct.post(path, json={"model": "gpt-x", **body})
        error = check_shape(response.json())
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "org/scripted" in error["message"]
    assert backend.requests == []


async def test_context_length_has_openais_code(direct: httpx.AsyncClient) -> None:
    response = await direct.post(COMPLETION, json={"prompt": [5] * 500})
    assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-slo-ttft-ms", "fast"),
        ("x-slo-ttft-ms", "nan"),
        ("x-slo-tpot-ms", "0"),
        ("x-slo-tpot-ms", "inf"),
        ("x-session-id", "x" * 600),
    ],
)
async def test_headers_are_checked_too(direct: httpx.AsyncClient, name: str, value: str) -> None:
    response = await direct.post(COMPLETION, json={"prompt": "a"}, headers={name: value})
    assert response.status_code == 400
    assert check_shape(response.json())["param"] == name


async def test_tokenize_takes_one_of_prompt_and_messages(direct: httpx.AsyncClient) -> None:
    for body in ({}, {"prompt": "a", "messages": MESSAGES}):
        response = await direct.post("/tokenize", json=body)
        assert response.status_code == 400
        assert check_shape(response.json())["param"] == "prompt"


@pytest.mark.parametrize("tokens", [[512], [-1], ["a"], 5, [2**70]])
async def test_detokenize_refuses_what_are_no_token_ids(direct: httpx.AsyncClient, tokens: Any) -> None:
    response = await direct.post("/detokenize", json={"tokens": tokens})
    assert response.status_code == 400
    assert (check_shape(response.json())["param"] or "").startswith("tokens")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v2", 404), ("GET", CHAT, 405), ("PUT", "/health", 405)]
)
async def test_unknown_paths_and_methods_have_the_same_shape(
    direct: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await direct.request(method, path)
    assert response.status_code == status
    assert path in check_shape(response.json())["message"]
