"""Invariant 6: a draw depends on seed and token index, not on batch, place, preemption or worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from sampling_cases import RANDOM, sequence_of

from baton.engine.sampler import Sampler
from baton.engine.sequence import Sequence
from baton.request import SamplingParams

torch.set_num_threads(1)

VOCAB = 3000
MODEL_SEED = 11


def model(sequence: Sequence) -> torch.Tensor:
    """Stands in for a forward pass: logits as a function of the sequence's last tokens."""
    generator = torch.Generator().manual_seed(MODEL_SEED + sum(sequence.token_ids[-3:]))
    return torch.randn(VOCAB, generator=generator) * 3


def step(sampler: Sampler, sequences: list[Sequence]) -> None:
    logits = torch.stack([model(sequence) for sequence in sequences])
    for sequence, token in sampler.draw(logits, sequences).read(sequences):
        sequence.token_ids.append(token.token_id)


def generate(sequence: Sequence, others: list[Sequence], place: int, steps: int = 24) -> list[int]:
    """Tokens of `sequence` in a batch with `others`, one of which leaves every third step."""
    sampler = Sampler(VOCAB, frozenset())
    for i in range(steps):
        batch = others[i // 3 :]
        batch.insert(min(place, len(batch)), sequence)
        step(sampler, batch)
    return sequence.token_ids[sequence.prompt_tokens :]


PARAMS = {
    "plain": RANDOM,
    "top_p": replace(RANDOM, top_p=0.9),
    "top_k": replace(RANDOM, top_k=400),
    "everything": replace(
        RANDOM,
        temperature=0.8,
        top_k=900,
        top_p=0.95,
        min_p=0.001,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((5, 2.0),),
        min_tokens=4,
        logprobs=2,
    ),
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("place", [0, 7, 15])
def test_the_same_seed_draws_the_same_tokens_alone_and_in_a_batch_of_16(name: str, place: int) -> None:
    sampling = replace(PARAMS[name], seed=2**64 - 5)
    alone = generate(sequence_of(sampling, [1, 2, 3]), [], 0)
    variety = list(PARAMS.values())
    others = [
        sequence_of(replace(variety[i % len(variety)], seed=i, temperature=i % 3 / 2), [i, 9])
        for i in range(15)
    ]
    assert generate(sequence_of(sampling, [1, 2, 3]), others, place) == alone
    assert len(set(alone)) > 10


@pytest.mark.parametrize("name", PARAMS)
def test_a_preempted_sequence_goes_on_on_another_worker_as_if_nothing_had_happened(name: str) -> None:
    sampling: SamplingParams = replace(PARAMS[name], seed=99)
    undisturbed = generate(sequence_of(sampling, [4, 5]), [], 0, steps=24)
    before = generate(sequence_of(sampling, [4, 5]), [], 0, steps=10)
    assert generate(sequence_of(sampling, [4, 5], before), [], 0, steps=14) == undisturbed


def test_choices_of_one_request_draw_different_numbers() -> None:
    sequences = [sequence_of(replace(RANDOM, seed=3)) for _ in range(4)]
    for choice, sequence in enumerate(sequences):
        sequence.choice = choice
    outputs = [tuple(generate(sequence, [], 0)) for sequence in sequences]
    assert len(set(outputs)) == 4


def test_frequencies_follow_the_filtered_distribution() -> None:
    draws, vocab = 20_000, 12
    logits = torch.linspace(-2.0, 2.0, vocab)
    sampling = replace(RANDOM, temperature=0.9, top_k=10, top_p=0.97)
    sequences = [sequence_of(replace(sampling, seed=seed)) for seed in range(draws)]
    drawn = Sampler(vocab, frozenset()).draw(logits.expand(draws, vocab).contiguous(), sequences)
    tokens = [token for _, token in drawn.read(sequences)]
    observed = Counter(token.token_id for token in tokens)

    probabilities = (logits / 0.9).softmax(-1)
    probabilities[:2] = 0  # top_k
    probabilities /= probabilities.sum()
    below = probabilities.cumsum(0)
    probabilities[below <= 1 - 0.97] = 0  # top_p
    probabilities /= probabilities.sum()
    expected = {token_id: p * draws for token_id, p in enumerate(probabilities.tolist()) if p}
    assert set(observed) == set(expected)
    chi_square = sum((observed[token_id] - n) ** 2 / n for token_id, n in expected.items())
    assert len(expected) == 8
    assert chi_square < 24.3  # the 99.9 % quantile at 7 degrees of freedom
