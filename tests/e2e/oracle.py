"""What Hugging Face transformers generates, to compare with."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cluster import Answer
from model_folders import prompt_ids
from transformers import AutoModelForCausalLM

TOKENS = 64
LOGPROB_TOLERANCE = 1e-4

_FAIR_MARGIN = 2e-4
"""Where the two best logits are closer, float32 rounding may decide between them."""


@dataclass(frozen=True)
class Reference:
    """A greedy continuation: its token ids and their log distributions, float32 [tokens, vocab_size]."""

    prompt: tuple[int, ...]
    token_ids: list[int]
    logprobs: torch.Tensor

    @property
    def margin(self) -> float:
        best = self.logprobs.topk(2, dim=-1).values
        return float((best[:, 0] - best[:, 1]).min())


def generate(folder: Path, prompt: Sequence[int], tokens: int, **options: object) -> Any:
    """transformers' own result of `tokens` greedy steps, from a fresh model each time: its dynamic rope remembers
    the longest sequence that it has seen."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


@functools.cache
def greedy(folder: Path, prompt: tuple[int, ...], tokens: int = TOKENS) -> Reference:
    output = generate(folder, prompt, tokens)
    logprobs = torch.cat(output.logits).log_softmax(-1)
    return Reference(prompt, output.sequences[0, len(prompt) :].tolist(), logprobs)


def reference(folder: Path, prompt_tokens: int, begin: tuple[int, ...] = ()) -> Reference:
    """The continuation of `begin` and random tokens, `prompt_tokens` in all, that rounding cannot change."""
    for seed in range(20):
        prompt = begin + tuple(prompt_ids(prompt_tokens - len(begin), seed))
        found = greedy(folder, prompt)
        if found.margin > _FAIR_MARGIN:
            return found
    raise AssertionError(f"{folder.name}: no prompt of {prompt_tokens} tokens is a fair test")


def assert_equal(answer: Answer, expected: Reference) -> None:
    """The answer's only choice is the reference, and so are its counts."""
    [choice] = answer.choices
    assert_equal_choice(choice, expected)
    assert answer.usage["prompt_tokens"] == len(expected.prompt)
    assert answer.usage["completion_tokens"] == len(expected.token_ids)


def assert_equal_choice(choice: Mapping[str, Any], expected: Reference) -> None:
    """Token ids are identical; logprobs, where the choice has them, agree to 1e-4."""
    assert choice["token_ids"] == expected.token_ids
    assert choice["finish_reason"] == "length"
    if choice["logprobs"] is not None:
        _assert_logprobs(choice["logprobs"], expected)


def _assert_logprobs(logprobs: dict[str, list[object]], expected: Reference) -> None:
    columns = zip(
        expected.token_ids,
        expected.logprobs,
        logprobs["token_logprobs"],
        logprobs["top_logprobs"],
        strict=True,
    )
    for token_id, row, chosen, top in columns:
        assert isinstance(top, dict)
        assert chosen == pytest.approx(row[token_id].item(), abs=LOGPROB_TOLERANCE)
        best = row.topk(len(top))
        told = sorted(top.values(), reverse=True)
        assert told == pytest.approx(best.values.tolist(), abs=LOGPROB_TOLERANCE)
        for name, logprob in top.items():
            other = int(name.removeprefix("token_id:"))
            assert logprob == pytest.approx(row[other].item(), abs=LOGPROB_TOLERANCE)
