"""The official client gets what it expects from OpenAI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam
from scripted_backend import EOS_TOKEN_ID, ScriptedBackend

from baton.errors import Overloaded
from baton.router.tokenizer import TextProcessor

Says = Callable[[str], Awaitable[None]]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


async def test_chat_answers_until_eos(
    client: AsyncOpenAI, says: Says, backend: ScriptedBackend, text: TextProcessor
) -> None:
    await says("Grüße, 東京 🎉!")
    answer = await client.chat.completions.create(model="scripted", messages=HELLO, temperature=0)
    assert answer.choices[0].message.content == "Grüße, 東京 🎉!"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", "scripted")
    request = backend.requests[0]
    rendered = "<|begin|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert list(request.token_ids) == await text.encode(rendered, add_special_tokens=False)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(request.token_ids)
    assert answer.usage.completion_tokens == len(backend.script) + 1  # EOS is generated too
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert request.sampling.max_tokens == backend.model.max_model_tokens - len(request.token_ids)


async def test_chat_streams_the_same_text(client: AsyncOpenAI, says: Says) -> None:
    await says("Grüße, 東京 🎉! The quick brown fox.")
    stream = await client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    content = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(content) == "Grüße, 東京 🎉! The quick brown fox."
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1] if chunk.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


async def test_completion_has_sixteen_tokens_unless_asked(client: AsyncOpenAI, says: Says) -> None:
    await says("The quick brown fox jumps over the lazy dog. " * 4)
    answer = await client.completions.create(model="scripted", prompt="Once", temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"
    short = await client.completions.create(model="scripted", prompt="Once", temperature=0, max_tokens=2)
    assert answer.choices[0].text.startswith(short.choices[0].text)


async def test_prompts_of_all_kinds_are_the_same_prompt(
    client: AsyncOpenAI, backend: ScriptedBackend, text: TextProcessor
) -> None:
    token_ids = await text.encode("The fox", add_special_tokens=True)
    assert token_ids[0] == 0
    for prompt in ("The fox", ["The fox"], token_ids, [token_ids]):
        await client.completions.create(model="scripted", prompt=prompt, temperature=0)
    assert {request.token_ids for request in backend.requests} == {tuple(token_ids)}
    await client.completions.create(
        model="scripted", prompt="The fox", extra_body={"add_special_tokens": False}
    )
    assert list(backend.requests[-1].token_ids) == token_ids[1:]


async def test_choices_of_several_prompts_are_in_order(client: AsyncOpenAI, backend: ScriptedBackend) -> None:
    answer = await client.completions.create(
        model="scripted", prompt=["a", "the fox"], n=3, seed=7, max_tokens=5, echo=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    assert [choice.text[0] for choice in answer.choices] == ["a"] * 3 + ["t"] * 3
    assert len({choice.text for choice in answer.choices[:3]}) == 3
    assert len(backend.requests) == 2
    assert len({request.request_id for request in backend.requests}) == 2
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(len(request.token_ids) for request in backend.requests)
    assert answer.usage.completion_tokens == 30


@pytest.mark.parametrize("prompt", ["a", ["a", "the fox", "b"]])
async def test_streamed_choices_equal_whole_ones(client: AsyncOpenAI, prompt: str | list[str]) -> None:
    whole = await client.completions.create(
        model="scripted", prompt=prompt, n=4, seed=11, max_tokens=20, echo=True
    )
    texts = {choice.index: "" for choice in whole.choices}
    endings: dict[int, str | None] = dict.fromkeys(texts)
    stream = await client.completions.create(
        model="scripted", prompt=prompt, n=4, seed=11, max_tokens=20, echo=True, stream=True
    )
    async for chunk in stream:
        for choice in chunk.choices:
            assert not endings[choice.index]
            texts[choice.index] += choice.text
            endings[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert set(endings.values()) == {"length"}


async def test_same_seed_same_answer_and_no_seed_another(
    client: AsyncOpenAI, backend: ScriptedBackend
) -> None:
    async def answer(seed: int | None) -> str:
        body = await client.completions.create(model="scripted", prompt="a", seed=seed, max_tokens=12)
        return body.choices[0].text

    assert await answer(-5) == await answer(-5)
    assert backend.requests[0].sampling.seed == 2**64 - 5
    assert await answer(None) != await answer(None)


@pytest.mark.parametrize("is_stream", [True, False])
async def test_stop_string_ends_the_text_before_it(
    client: AsyncOpenAI, says: Says, backend: ScriptedBackend, is_stream: bool
) -> None:
    await says("The quick brown fox. ### END ### and more of it")
    if is_stream:
        stream = await client.completions.create(
            model="scripted", prompt="a", temperature=0, max_tokens=100, stop=["never", "# END"], stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]
        content, finish_reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason
    else:
        answer = await client.completions.create(
            model="scripted", prompt="a", temperature=0, max_tokens=100, stop=["never", "# END"]
        )
        content, finish_reason = answer.choices[0].text, answer.choices[0].finish_reason
    assert content == "The quick brown fox. ##"
    assert finish_reason == "stop"
    await backend.until(is_open=False)
    assert backend.outputs_given < len(backend.script)


async def test_a_choice_that_stops_early_is_ended_while_others_go_on(
    client: AsyncOpenAI, backend: ScriptedBackend
) -> None:
    whole = await client.completions.create(model="scripted", prompt="a", n=2, seed=3, max_tokens=20)
    texts = [choice.text for choice in whole.choices]
    stop = next(part for i in range(5, 12) if (part := texts[1][i : i + 3]) not in texts[0])
    answer = await client.completions.create(
        model="scripted", prompt="a", n=2, seed=3, max_tokens=20, stop=stop
    )
    assert [choice.text for choice in answer.choices] == [texts[0], texts[1][: texts[1].index(stop)]]
    assert backend.ended_choices == [1]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "stop"]


async def test_an_error_is_the_clients_exception(client: AsyncOpenAI, backend: ScriptedBackend) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model="scripted", messages=HELLO, temperature=9)
    assert bad.value.param == "temperature"
    assert bad.value.code == "invalid_request"
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(model="gpt", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    backend.fail_at, backend.error = -1, Overloaded("full", retry_after_s=2.5)
    with pytest.raises(openai.RateLimitError) as full:
        await client.chat.completions.create(model="scripted", messages=HELLO)
    assert full.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize("prompt", ["a", ["a", "b", "c"]])
async def test_a_failure_in_the_stream_is_an_exception(
    client: AsyncOpenAI, backend: ScriptedBackend, prompt: str | list[str]
) -> None:
    backend.fail_at, backend.error = 3, Overloaded("a worker is full")
    stream = await client.completions.create(model="scripted", prompt=prompt, max_tokens=10, stream=True)
    with pytest.raises(openai.APIError, match="a worker is full"):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels_the_generation(client: AsyncOpenAI, backend: ScriptedBackend) -> None:
    backend.stall_at = 4
    stream = await client.completions.create(model="scripted", prompt="a", max_tokens=10, stream=True)
    await anext(aiter(stream))
    assert backend.open == 1
    await stream.close()
    await backend.until(is_open=False)


async def test_models(client: AsyncOpenAI) -> None:
    models = [model async for model in await client.models.list()]
    assert [model.id for model in models] == ["org/scripted", "scripted"]
    assert (await client.models.retrieve("org/scripted")).owned_by == "baton"


async def test_stop_token_ids_and_ignore_eos(
    client: AsyncOpenAI, says: Says, backend: ScriptedBackend
) -> None:
    await says("abc")
    a, b, _ = backend.script
    stopped = await client.completions.create(
        model="scripted",
        prompt="x",
        temperature=0,
        extra_body={"stop_token_ids": [b], "return_token_ids": True},
    )
    choice = stopped.choices[0].model_dump()
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("a", "stop", b)
    assert choice["token_ids"] == [a, b]
    assert choice["prompt_token_ids"] == list(backend.requests[0].token_ids)
    ignored = await client.completions.create(
        model="scripted", prompt="x", temperature=0, max_tokens=8, extra_body={"ignore_eos": True}
    )
    assert (ignored.choices[0].text, ignored.choices[0].finish_reason) == ("abcabc", "length")
    shown = await client.completions.create(
        model="scripted",
        prompt="x",
        temperature=0,
        max_tokens=5,
        extra_body={"ignore_eos": True, "skip_special_tokens": False},
    )
    assert shown.choices[0].text == "abc<|im_end|>a"
    included = await client.completions.create(
        model="scripted",
        prompt="x",
        temperature=0,
        extra_body={"stop_token_ids": [b], "include_stop_str_in_output": True},
    )
    assert included.choices[0].text == "ab"
    assert EOS_TOKEN_ID not in backend.script


async def test_streamed_token_ids(client: AsyncOpenAI, says: Says, backend: ScriptedBackend) -> None:
    await says("Grüße 🎉")
    stream = await client.chat.completions.create(
        model="scripted",
        messages=HELLO,
        temperature=0,
        stream=True,
        extra_body={"return_token_ids": True},
    )
    chunks = [chunk.model_dump() async for chunk in stream]
    assert chunks[0]["prompt_token_ids"] == list(backend.requests[0].token_ids)
    token_ids = [token_id for chunk in chunks[1:] for token_id in chunk["choices"][0]["token_ids"]]
    assert token_ids == [*backend.script, EOS_TOKEN_ID]
