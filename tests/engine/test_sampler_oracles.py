"""Filters and penalties against Hugging Face transformers, over vocabularies wider than the first look."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sampling_cases import GREEDY, RANDOM, sequence_of
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baton.engine.likely_tokens import keep_likely
from baton.engine.logit_edits import edit_logits
from baton.request import SamplingParams

torch.set_num_threads(1)

VOCAB = 9000


@pytest.fixture(params=[0.02, 1.0, 8.0], ids=["flat", "normal", "peaked"])
def logits(request: pytest.FixtureRequest) -> torch.Tensor:
    spread: float = request.param
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(5)) * spread


def kept_by_baton(logits: torch.Tensor, sampling: SamplingParams, may_wait: bool = True) -> torch.Tensor:
    weights = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).exp()
    keep_likely(weights, [sampling] * len(logits), may_wait=may_wait)
    return weights > 0


def kept_by_transformers(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    # float64: over thousands of tokens, float32 sums differ by more than one flat token weighs
    kept: torch.Tensor = warpers(torch.LongTensor(len(logits), 1), logits.double()) > -torch.inf
    return kept


@pytest.mark.parametrize(
    "sampling",
    [
        replace(RANDOM, top_k=1),
        replace(RANDOM, top_k=50),
        replace(RANDOM, top_k=256),
        replace(RANDOM, top_k=257),
        replace(RANDOM, top_k=5000),
        replace(RANDOM, top_k=VOCAB),
        replace(RANDOM, top_p=0.05),
        replace(RANDOM, top_p=0.9),
        replace(RANDOM, top_p=0.999),
        replace(RANDOM, min_p=0.05),
        replace(RANDOM, min_p=0.9),
        replace(RANDOM, top_k=300, top_p=0.8),
        replace(RANDOM, top_k=40, top_p=0.95, min_p=0.1),
        replace(RANDOM, top_p=0.7, temperature=1.8),
        replace(RANDOM, top_p=0.7, temperature=0.2),
    ],
    ids=lambda sampling: f"k{sampling.top_k}-p{sampling.top_p}-m{sampling.min_p}-t{sampling.temperature}",
)
@pytest.mark.parametrize("may_wait", [True, False], ids=["on a CPU", "on a GPU"])
def test_the_filters_keep_what_transformers_keeps(
    logits: torch.Tensor, sampling: SamplingParams, may_wait: bool
) -> None:
    ours, theirs = kept_by_baton(logits, sampling, may_wait), kept_by_transformers(logits, sampling)
    # A token whose cumulative mass meets top_p within rounding may fall on either side.
    assert (ours != theirs).sum() <= len(logits) * (sampling.top_p < 1)
    assert ((ours.sum(-1) - theirs.sum(-1)).abs() <= 1).all()


def test_a_filter_of_one_row_leaves_the_others_alone(logits: torch.Tensor) -> None:
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    expected = weights.clone()
    expected[1] *= kept_by_baton(logits, replace(RANDOM, top_k=7))[1]
    keep_likely(weights, [RANDOM, replace(RANDOM, top_k=7), RANDOM])
    assert torch.equal(weights, expected)


def test_ties_at_the_cut_off_are_all_kept_even_beyond_the_first_look() -> None:
    weights = torch.full((1, VOCAB), 0.5)
    weights[0, 17] = 1.0
    weights[0, 5000:] = 0.25
    keep_likely(weights, [replace(RANDOM, top_k=10)])
    assert weights.count_nonzero() == 5000


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_that_of_transformers(logits: torch.Tensor, penalty: float) -> None:
    generator = torch.Generator().manual_seed(6)
    token_ids = torch.randint(VOCAB, (3, 40), generator=generator)
    token_ids[:, 20:30] = token_ids[:, :10]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(token_ids, logits.clone())
    sampling = replace(GREEDY, repetition_penalty=penalty)
    sequences = [sequence_of(sampling, row[:25], row[25:]) for row in token_ids.tolist()]
    edit_logits(logits, sequences, frozenset())
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)
