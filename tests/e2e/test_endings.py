"""How a request ends, and that it says so truthfully: stop, length, first token, several choices."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from cluster import Cluster
from model_folders import END_ID, prompt_ids
from oracle import assert_equal, generate, greedy, reference

PROMPT_TOKENS = 40

salts = count()


def test_max_tokens_1_ends_with_the_first_token(cluster: Cluster, llama: Path) -> None:
    expected = reference(llama, PROMPT_TOKENS)
    answer = cluster.complete(expected.prompt, max_tokens=1)
    assert answer.token_ids == expected.token_ids[:1]
    assert answer.finish_reason == "length"
    assert answer.usage["completion_tokens"] == 1


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_end_token_that_comes_first_ends_the_request_at_once(cluster: Cluster, ignore_eos: bool) -> None:
    """The bias leaves nothing else to draw."""
    answer = cluster.complete(
        prompt_ids(PROMPT_TOKENS), logit_bias={str(END_ID): 100}, ignore_eos=ignore_eos, max_tokens=8
    )
    assert answer.token_ids == [END_ID] * (8 if ignore_eos else 1)
    assert answer.finish_reason == ("length" if ignore_eos else "stop")


def test_min_tokens_holds_the_end_token_back(cluster: Cluster) -> None:
    answer = cluster.complete(
        prompt_ids(PROMPT_TOKENS),
        logit_bias={str(END_ID): 100},
        ignore_eos=False,
        min_tokens=5,
        max_tokens=20,
    )
    assert END_ID not in answer.token_ids[:5]
    assert answer.token_ids[5:] == [END_ID]
    assert answer.finish_reason == "stop"


def test_a_stop_token_id_ends_the_request_where_it_comes(cluster: Cluster, llama: Path) -> None:
    expected = reference(llama, PROMPT_TOKENS)
    stop_token_id = next(t for i, t in enumerate(expected.token_ids) if i >= 5)
    end = expected.token_ids.index(stop_token_id) + 1
    answer = cluster.complete(expected.prompt, stop_token_ids=[stop_token_id])
    assert answer.token_ids == expected.token_ids[:end]
    assert answer.finish_reason == "stop"
    assert answer.choices[0]["stop_reason"] == stop_token_id


def test_a_stop_string_ends_the_request_and_stays_out_of_its_text(cluster: Cluster, llama: Path) -> None:
    expected = reference(llama, PROMPT_TOKENS)
    text = cluster.complete(expected.prompt).choices[0]["text"]
    stop = text[10:13]
    answer = cluster.complete(expected.prompt, stop=stop)
    assert answer.choices[0]["text"] == text[: text.index(stop)]
    assert answer.finish_reason == "stop"
    assert answer.choices[0]["stop_reason"] == stop


def test_the_context_limit_ends_a_request_with_length(cluster: Cluster, llama: Path) -> None:
    prompt = tuple(prompt_ids(2044))
    answer = cluster.complete(prompt, max_tokens=4)
    assert answer.token_ids == greedy(llama, prompt, tokens=4).token_ids
    assert answer.finish_reason == "length"


def test_greedy_choices_are_equal_and_the_prompt_counts_once(cluster: Cluster, llama: Path) -> None:
    expected = reference(llama, PROMPT_TOKENS)
    answer = cluster.complete(expected.prompt, n=3)
    assert [choice["token_ids"] for choice in answer.choices] == [expected.token_ids] * 3
    assert answer.usage["prompt_tokens"] == PROMPT_TOKENS
    assert answer.usage["completion_tokens"] == 3 * len(expected.token_ids)


def test_choices_of_a_seed_are_the_same_again_and_differ_from_each_other(cluster: Cluster) -> None:
    first, again = (
        cluster.complete(
            prompt_ids(PROMPT_TOKENS), n=4, seed=11, temperature=1.0, cache_salt=f"{next(salts)}"
        )
        for _ in range(2)
    )
    choices = [choice["token_ids"] for choice in first.choices]
    assert [choice["token_ids"] for choice in again.choices] == choices
    assert len({tuple(choice) for choice in choices}) == 4


def test_choices_end_one_by_one(cluster: Cluster) -> None:
    """With a likely stop token the choices end at different lengths, some with their first token."""
    prompt = prompt_ids(PROMPT_TOKENS)
    free = cluster.complete(prompt, n=6, seed=5, temperature=1.0)
    stop_token_id = free.choices[0]["token_ids"][0]
    answer = cluster.complete(prompt, n=6, seed=5, temperature=1.0, stop_token_ids=[stop_token_id])
    for before, after in zip(free.choices, answer.choices, strict=True):
        if stop_token_id in before["token_ids"]:
            end = before["token_ids"].index(stop_token_id) + 1
            assert (after["token_ids"], after["finish_reason"]) == (before["token_ids"][:end], "stop")
        else:
            assert (after["token_ids"], after["finish_reason"]) == (before["token_ids"], "length")


def test_several_prompts_of_one_request_are_answered_in_order(cluster: Cluster, llama: Path) -> None:
    references = [reference(llama, tokens) for tokens in (3, 40, 17)]
    answer = cluster.complete([expected.prompt for expected in references])
    assert [choice["token_ids"] for choice in answer.choices] == [r.token_ids for r in references]


def test_a_repetition_penalty_does_what_transformers_does(cluster: Cluster, llama: Path) -> None:
    prompt = prompt_ids(PROMPT_TOKENS)
    expected = generate(llama, prompt, 32, repetition_penalty=1.3).sequences[0, len(prompt) :].tolist()
    answer = cluster.complete(prompt, repetition_penalty=1.3, max_tokens=32)
    assert answer.token_ids == expected


def test_a_large_frequency_penalty_never_repeats_a_token(cluster: Cluster) -> None:
    """Under a bias towards ten tokens, the penalty makes greedy decoding take turns among them."""
    bias = {str(token_id): 50 for token_id in range(10)}
    plain = cluster.complete(prompt_ids(PROMPT_TOKENS), logit_bias=bias, max_tokens=10)
    penalised = cluster.complete(
        prompt_ids(PROMPT_TOKENS), logit_bias=bias, max_tokens=10, frequency_penalty=2.0, presence_penalty=2.0
    )
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids))


def test_a_text_prompt_is_the_tokens_of_its_text(cluster: Cluster, llama: Path) -> None:
    text = "Permission is hereby granted"
    tokens = cluster.client.post("/tokenize", json={"prompt": text}).raise_for_status().json()["tokens"]
    assert_equal(cluster.complete(text), greedy(llama, tuple(tokens)))
    body = cluster.client.post("/detokenize", json={"tokens": tokens}).raise_for_status().json()
    assert body["prompt"] == text
