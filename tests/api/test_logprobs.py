"""Logprobs in both of OpenAI's shapes, whole and streamed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from scripted_backend import ScriptedBackend

from baton.router.tokenizer import TextProcessor

Says = Callable[[str], Awaitable[None]]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


async def test_chat_logprobs(client: AsyncOpenAI, says: Says) -> None:
    await says("é🎉")
    answer = await client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    spelled = b"".join(bytes(token.bytes or []) for token in logprobs.content)
    assert spelled == "é🎉<|im_end|>".encode()
    assert all(token.logprob == -0.5 for token in logprobs.content)
    assert [top.logprob for top in logprobs.content[0].top_logprobs] == [-0.5, -1.5, -2.5, -9999.0]


async def test_streamed_chat_logprobs_cover_every_token(
    client: AsyncOpenAI, says: Says, backend: ScriptedBackend
) -> None:
    await says("é🎉")
    stream = await client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        temperature=0,
        logprobs=True,
        stream=True,
    )
    tokens = [
        token
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or []
    ]
    assert len(tokens) == len(backend.script) + 1
    assert b"".join(bytes(token.bytes or []) for token in tokens) == "é🎉<|im_end|>".encode()


async def test_completion_logprobs(client: AsyncOpenAI, says: Says, backend: ScriptedBackend) -> None:
    await says("The fox é🎉.")
    answer = await client.completions.create(model="scripted", prompt="a", temperature=0, logprobs=2)
    logprobs, content = answer.choices[0].logprobs, answer.choices[0].text
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(backend.script) + 1
    assert all(len(top) == 2 for top in logprobs.top_logprobs)
    for token, offset in zip(logprobs.tokens[:-1], logprobs.text_offset, strict=False):
        assert token.startswith("bytes:") or content[offset:].startswith(token)


async def test_tokens_may_be_named_by_id(direct: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    body = {"prompt": "Hi", "logprobs": 2, "return_tokens_as_token_ids": True, "return_token_ids": True}
    choice = (await direct.post(COMPLETION, json=body)).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token_id}" for token_id in choice["token_ids"]]


async def test_a_token_of_half_a_character_is_named_by_its_bytes(
    direct: httpx.AsyncClient, backend: ScriptedBackend, text: TextProcessor
) -> None:
    backend.script = [next(i for i in range(500) if text.pieces[i] == b"\xf0")]
    body = {"prompt": "Hi", "temperature": 0, "logprobs": 0}
    logprobs = (await direct.post(COMPLETION, json=body)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"][0] == "bytes:\\xf0"
    chat = {"messages": HELLO, "temperature": 0, "logprobs": True}
    content = (await direct.post(CHAT, json=chat)).json()["choices"][0]["logprobs"]["content"]
    assert content[0] == {"token": "\\xf0", "logprob": -0.5, "bytes": [0xF0], "top_logprobs": []}
