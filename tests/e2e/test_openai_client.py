"""The official `openai` client, unchanged, against a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from cluster import Cluster
from openai.types.chat import ChatCompletionMessageParam

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Who may copy this, and when?"}]
PROMPT = "Permission is hereby granted, free of charge"


@pytest.fixture(scope="module")
def client(shared_cluster: Cluster) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_cluster.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    [model] = client.models.list().data
    return model.id


@pytest.fixture(autouse=True)
def _in_this_cluster(cluster: Cluster) -> None:
    """Each test here ends with the check of the cluster's pools."""


def test_the_model_is_named_after_its_folder(model: str, llama: Path) -> None:
    assert model == llama.name


def test_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12, temperature=0)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_says_what_a_whole_one_says(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=24, temperature=0)
    stream = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_completion_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    whole = client.completions.create(model=model, prompt=PROMPT, max_tokens=20, temperature=0)
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=20, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_n_and_seed(client: openai.OpenAI, model: str) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model=model, messages=MESSAGES, n=3, seed=seed, temperature=1.0, max_tokens=16
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = texts(1)
    assert texts(1) == first
    assert texts(2) != first
    assert len(set(first)) == 3


def test_logprobs_of_a_chat(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        best = token.top_logprobs[0]
        assert (best.token, best.logprob) == (token.token, token.logprob)
        assert 0 >= best.logprob >= token.top_logprobs[1].logprob >= token.top_logprobs[2].logprob


def test_logprobs_of_a_completion(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(model=model, prompt=PROMPT, max_tokens=8, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert answer.usage is not None
    assert len(logprobs.token_logprobs) == answer.usage.completion_tokens


def test_stop(client: openai.OpenAI, model: str) -> None:
    whole = (
        client.completions.create(model=model, prompt=PROMPT, max_tokens=24, temperature=0).choices[0].text
    )
    stop = whole[5:7]
    stopped = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=24, temperature=0, stop=["never said", stop]
    )
    assert stopped.choices[0].text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_closed_stream_cancels_its_request(client: openai.OpenAI, model: str, cluster: Cluster) -> None:
    stream = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    cluster.wait_for_baseline(steady_s=0.6)


def test_errors_are_the_clients_own(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no such model", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=3)
    assert wrong.value.param == "temperature"
