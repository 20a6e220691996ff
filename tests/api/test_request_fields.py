"""What of a request reaches the backend, and under which name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import pytest
from scripted_backend import MODEL, ScriptedBackend

from baton.request import GenerationRequest, Objectives, SamplingParams
from baton.router.api.backend import SamplingDefaults
from baton.router.tokenizer import TextProcessor

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]


async def sent(
    direct: httpx.AsyncClient,
    backend: ScriptedBackend,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
) -> GenerationRequest:
    path = CHAT if "messages" in body else COMPLETION
    response = await direct.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return backend.requests[-1]


async def prompt_text(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor, body: dict[str, Any]
) -> str:
    return text.decode((await sent(direct, backend, body)).token_ids, skip_special_tokens=False)


async def test_every_sampling_field_arrives(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    request = await sent(
        direct,
        backend,
        {
            "prompt": "Hi",
            "max_tokens": 9,
            "min_tokens": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "logit_bias": {"7": -100, "11": 2.5},
            "seed": 42,
            "logprobs": 3,
            "stop_token_ids": [5, 6],
            "ignore_eos": True,
        },
    )
    assert request.sampling == SamplingParams(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((7, -100.0), (11, 2.5)),
        seed=42,
        logprobs=3,
        stop_token_ids=(5, 6),
        ignore_eos=True,
    )


async def test_what_is_left_out_is_the_models_default(
    direct: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    assert (await sent(direct, backend, {"prompt": "Hi"})).sampling.temperature == 1.0
    backend.model = replace(MODEL, sampling_defaults=SamplingDefaults(0.6, 0.9, 20, 0.1, 1.05))
    sampling = (await sent(direct, backend, {"prompt": "Hi"})).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.6, 0.9, 20, 0.1)
    assert sampling.repetition_penalty == 1.05
    sampling = (await sent(direct, backend, {"prompt": "Hi", "temperature": 0, "top_k": -1})).sampling
    assert (sampling.temperature, sampling.top_k, sampling.is_greedy) == (0.0, 0, True)


async def test_a_temperature_too_small_to_divide_by_is_raised(
    direct: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    assert (await sent(direct, backend, {"prompt": "Hi", "temperature": 1e-300})).sampling.temperature == 0.01


async def test_max_completion_tokens_goes_before_max_tokens(
    direct: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    body = {"messages": MESSAGES, "max_tokens": 9, "max_completion_tokens": 4}
    assert (await sent(direct, backend, body)).sampling.max_tokens == 4
    assert (await sent(direct, backend, {"messages": MESSAGES, "max_tokens": 9})).sampling.max_tokens == 9


async def test_the_default_length_is_cut_to_the_context(
    direct: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    assert (await sent(direct, backend, {"prompt": [5] * 250})).sampling.max_tokens == 6
    assert (await sent(direct, backend, {"prompt": [5] * 255, "max_tokens": 1})).sampling.max_tokens == 1


async def test_scheduling_fields_arrive(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = {"prompt": "Hi", "priority": -3, "cache_salt": "tenant", "n": 2}
    request = await sent(direct, backend, body, {"x-slo-ttft-ms": "250", "x-slo-tpot-ms": "12.5"})
    assert (request.priority, request.cache_salt, request.n) == (-3, "tenant", 2)
    assert (request.objectives, request.deadline_s) == (Objectives(0.25, 0.0125), 600.0)
    request = await sent(direct, backend, {"prompt": "Hi"})
    assert (request.priority, request.cache_salt, request.objectives) == (0, "", Objectives())


@pytest.mark.parametrize(
    ("headers", "fields", "session"),
    [
        ({"X-Session-ID": "a", "X-SMG-Routing-Key": "b"}, {"session_id": "c", "user": "d"}, "a"),
        ({"X-SMG-Routing-Key": "b"}, {"session_id": "c", "user": "d"}, "b"),
        ({}, {"session_id": "c", "user": "d"}, "c"),
        ({}, {"user": "d"}, "d"),
        ({}, {}, None),
    ],
)
async def test_the_session_is_a_header_or_a_field(
    direct: httpx.AsyncClient,
    backend: ScriptedBackend,
    headers: dict[str, str],
    fields: dict[str, str],
    session: str | None,
) -> None:
    assert (await sent(direct, backend, {"prompt": "Hi", **fields}, headers)).session_id == session


async def test_request_ids_in_the_fleet_are_ours(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    for _ in range(2):
        await sent(direct, backend, {"prompt": "Hi"}, {"x-request-id": "same"})
    assert len({request.request_id for request in backend.requests}) == 2


async def test_content_parts_are_joined_by_line_breaks(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}]}
    assert "user\none\ntwo<|im_end|>" in await prompt_text(direct, backend, text, body)


async def test_roles_of_tools_and_developers_are_rendered(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "What is f?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    prompt = await prompt_text(direct, backend, text, {"messages": messages})
    assert "developer\nBe kind." in prompt
    assert "assistant\n<|im_end|>" in prompt
    assert "tool\n42<|im_end|>" in prompt


async def test_template_switches(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor
) -> None:
    body: dict[str, Any] = {"messages": [*MESSAGES, {"role": "assistant", "content": "Hel"}]}
    assert (await prompt_text(direct, backend, text, body)).endswith("<|im_start|>assistant\n")
    open_ended = body | {"add_generation_prompt": False, "continue_final_message": True}
    assert (await prompt_text(direct, backend, text, open_ended)).endswith("assistant\nHel")
    styled = body | {"chat_template_kwargs": {"style": "é"}}
    assert (await prompt_text(direct, backend, text, styled)).endswith('style: "é"\n')
    twice = await prompt_text(direct, backend, text, body | {"add_special_tokens": True})
    assert twice.startswith("<|begin|><|begin|>")


async def test_tokenize_is_what_generation_uses(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor
) -> None:
    for body in ({"prompt": "The fox"}, {"messages": MESSAGES}):
        request = await sent(direct, backend, {**body})
        answer = (await direct.post("/tokenize", json=body)).json()
        assert answer == {
            "count": len(request.token_ids),
            "max_model_len": 256,
            "tokens": list(request.token_ids),
            "token_strs": None,
        }
    answer = (
        await direct.post(
            "/tokenize", json={"prompt": "é", "add_special_tokens": False, "return_token_strs": True}
        )
    ).json()
    assert text.token_texts(answer["tokens"]) == answer["token_strs"] == ["Ã©"]
    assert (await direct.post("/tokenize", json={"prompt": ""})).json()["tokens"] == [0]


async def test_detokenize_undoes_tokenize(direct: httpx.AsyncClient) -> None:
    tokens = (await direct.post("/tokenize", json={"prompt": "Grüße, 東京 🎉"})).json()["tokens"]
    answer = await direct.post("/detokenize", json={"tokens": tokens})
    assert answer.json() == {"prompt": "<|begin|>Grüße, 東京 🎉"}
