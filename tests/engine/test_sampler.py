"""How a token is chosen: against a slow sampler, and one behaviour a test."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sampling_cases import GREEDY, RANDOM, edited_logits, is_borderline, sequence_of, slow_choices

from baton.engine.sampler import Sampler
from baton.engine.sequence import Sequence
from baton.errors import WorkerFailed
from baton.request import SamplingParams, Token

torch.set_num_threads(1)

VOCAB = 24
EOS = frozenset({2, 3})
SAMPLER = Sampler(VOCAB, EOS)
TOKENS = st.integers(0, VOCAB - 1)
LOGITS = st.floats(-20, 20, width=32) | st.integers(-9, 9).map(float)  # the latter for ties
ROWS_OF_LOGITS = st.lists(LOGITS, min_size=VOCAB, max_size=VOCAB)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    biases = draw(st.dictionaries(TOKENS, st.floats(-5, 5, width=32), max_size=3))
    return SamplingParams(
        max_tokens=100,
        min_tokens=draw(st.integers(0, 6)),
        temperature=draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.6, 0.01])),
        top_k=draw(st.sampled_from([0, 1, 3, 10, VOCAB, 1000])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.4, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.8])),
        presence_penalty=draw(st.sampled_from([0.0, 0.7, -0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.5, -0.5])),
        logit_bias=tuple(biases.items()),
        seed=draw(st.integers(0, 2**64 - 1)),
        logprobs=draw(st.sampled_from([None, 0, 3])),
        stop_token_ids=tuple(draw(st.lists(TOKENS, max_size=2))),
        ignore_eos=draw(st.booleans()),
    )


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], Sequence]:
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=8))
    output = draw(st.lists(TOKENS, max_size=8))
    return draw(ROWS_OF_LOGITS), sequence_of(draw(sampling_params()), prompt, output)


def sample(logits: torch.Tensor, sequences: list[Sequence]) -> list[Token]:
    return [token for _, token in SAMPLER.draw(logits, sequences).read(sequences)]


def token_of(logits: list[float], sequence: Sequence) -> int:
    return sample(torch.tensor([logits]), [sequence])[0].token_id


@settings(max_examples=150, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=5))
def test_a_mixed_batch_gets_the_tokens_of_the_slow_sampler(batch: list[tuple[list[float], Sequence]]) -> None:
    for logits, sequence in batch:
        if not sequence.sampling.is_greedy:
            assume(not is_borderline(edited_logits(logits, sequence, EOS), sequence.sampling))
    stacked = torch.tensor([row for row, _ in batch])
    before = stacked.clone()
    tokens = sample(stacked, [sequence for _, sequence in batch])
    assert torch.equal(stacked, before)
    for token, (row, sequence) in zip(tokens, batch, strict=True):
        assert token.index == sequence.output_tokens
        assert token.token_id in slow_choices(row, sequence, EOS)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=5))
def test_logprobs_are_the_models_own_whatever_the_request_changes(
    batch: list[tuple[list[float], Sequence]],
) -> None:
    tokens = sample(torch.tensor([row for row, _ in batch]), [sequence for _, sequence in batch])
    for token, (row, sequence) in zip(tokens, batch, strict=True):
        exact = torch.tensor(row, dtype=torch.float64).log_softmax(-1)
        wanted = sequence.sampling.logprobs
        if wanted is None:
            assert (token.logprob, token.top_logprobs) == (None, ())
            continue
        assert token.logprob == pytest.approx(float(exact[token.token_id]), abs=1e-4)
        assert len(token.top_logprobs) == wanted
        assert [value for _, value in token.top_logprobs] == pytest.approx(
            exact.sort(descending=True).values[:wanted].tolist(), abs=1e-4
        )
        for token_id, value in token.top_logprobs:
            assert value == pytest.approx(float(exact[token_id]), abs=1e-4)


def test_the_end_is_ruled_out_until_min_tokens_even_where_it_would_be_ignored() -> None:
    logits = [float(VOCAB - i) for i in range(VOCAB)]
    logits[2], logits[5] = 100.0, 90.0
    for ignore_eos in (False, True):
        sampling = replace(GREEDY, min_tokens=2, stop_token_ids=(5,), ignore_eos=ignore_eos)
        assert token_of(logits, sequence_of(sampling, output=[9])) == 0
        assert token_of(logits, sequence_of(sampling, output=[9, 9])) == 2


def test_min_tokens_gives_way_where_every_token_is_an_ending() -> None:
    sampling = replace(GREEDY, min_tokens=2, stop_token_ids=tuple(range(VOCAB)))
    assert token_of([float(i) for i in range(VOCAB)], sequence_of(sampling)) == VOCAB - 1


def test_penalties_count_prompt_and_output_as_their_definitions_say() -> None:
    logits = [0.0] * VOCAB
    logits[4], logits[5], logits[6] = 2.0, 1.9, 1.5
    in_prompt = {"prompt": [4, 5], "output": []}
    in_output = {"prompt": [0], "output": [4, 4, 5]}
    assert token_of(logits, sequence_of(replace(GREEDY, repetition_penalty=2.0), **in_prompt)) == 6
    assert token_of(logits, sequence_of(replace(GREEDY, presence_penalty=0.45), **in_prompt)) == 4
    assert token_of(logits, sequence_of(replace(GREEDY, presence_penalty=0.45), **in_output)) == 4
    assert token_of(logits, sequence_of(replace(GREEDY, frequency_penalty=0.3), **in_output)) == 5


def test_the_smallest_temperature_is_greedy_and_a_single_candidate_is_certain() -> None:
    logits = [float(i % 7) for i in range(VOCAB)]
    logits[11] = 8.0
    for sampling in (
        replace(RANDOM, temperature=5e-324),
        replace(RANDOM, temperature=1e-30),
        replace(RANDOM, top_k=1),
        replace(RANDOM, top_p=1e-9),
        replace(RANDOM, min_p=1.0),
    ):
        assert {token_of(logits, sequence_of(replace(sampling, seed=seed))) for seed in range(20)} == {11}


def test_an_impossible_token_is_never_drawn() -> None:
    logits = [float("-inf")] * VOCAB
    logits[3] = logits[20] = -50.0
    seeds = range(40)
    drawn = {token_of(logits, sequence_of(replace(RANDOM, seed=seed))) for seed in seeds}
    assert drawn == {3, 20}


@pytest.mark.parametrize("sampling", [GREEDY, RANDOM], ids=["greedy", "random"])
@pytest.mark.parametrize("bad", [[float("nan")], [float("inf")], [float("-inf")] * VOCAB], ids=str)
def test_logits_that_are_no_distribution_fail_and_name_the_request(
    sampling: SamplingParams, bad: list[float]
) -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, : len(bad)] = torch.tensor(bad)
    sequences = [sequence_of(sampling) for _ in range(3)]
    sequences[1].request_id = "request-of-the-bad-row"
    with pytest.raises(WorkerFailed, match=r"request-of-the-bad-row: the largest logit of token 0 is"):
        sample(logits, sequences)


def test_an_empty_batch_has_no_tokens() -> None:
    assert sample(torch.empty(0, VOCAB), []) == []
