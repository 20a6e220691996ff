"""What a request changes about the model's logits before a token is chosen: bias, endings, penalties.

Everything is derived from the sequence's tokens at each step, so that a sequence needs nothing else to go on
after preemption or on another worker. All edits address single elements: their cost follows the number of
tokens concerned, never the size of the vocabulary.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable

import numpy as np
import torch

from baton.engine.device_copy import upload
from baton.engine.sequence import Sequence
from baton.request import SamplingParams


def has_edits(sequence: Sequence) -> bool:
    """Whether the next token of `sequence` is chosen from other logits than the model's own."""
    sampling = sequence.sampling
    return (
        bool(sampling.logit_bias)
        or sequence.output_tokens < sampling.min_tokens
        or depends_on_tokens(sampling)
    )


def depends_on_tokens(sampling: SamplingParams) -> bool:
    """Whether the next token is chosen by looking at those before it."""
    return (
        sampling.repetition_penalty != 1.0
        or sampling.presence_penalty != 0.0
        or sampling.frequency_penalty != 0.0
    )


def edit_logits(
    logits: torch.Tensor, sequences: abc.Sequence[Sequence], eos_token_ids: frozenset[int]
) -> None:
    """Edits `logits` in place: float32 [rows, vocab], contiguous; row i belongs to `sequences[i]`.

    In vLLM's order: min_tokens, logit_bias, repetition penalty, then frequency and presence penalties.
    """
    _forbid_endings(logits, sequences, eos_token_ids)
    _add_bias(logits, sequences)
    _penalize_repetition(logits, sequences)
    _penalize_frequency(logits, sequences)


def _forbid_endings(
    logits: torch.Tensor, sequences: abc.Sequence[Sequence], eos_token_ids: frozenset[int]
) -> None:
    """Rules out the stop tokens, and as in vLLM the end of sequence even where `ignore_eos` is set, while
    a sequence has fewer than `min_tokens` tokens (unless there is no other token)."""
    vocab = logits.shape[1]
    positions: list[int] = []
    for row, sequence in enumerate(sequences):
        if sequence.output_tokens < sequence.sampling.min_tokens:
            endings = eos_token_ids.union(sequence.sampling.stop_token_ids)
            if len(endings) < vocab:
                positions.extend(row * vocab + token_id for token_id in endings)
    if positions:
        logits.view(-1)[upload(torch.tensor(positions), logits.device)] = -torch.inf


def _add_bias(logits: torch.Tensor, sequences: abc.Sequence[Sequence]) -> None:
    vocab = logits.shape[1]
    biases = {
        row * vocab + token_id: bias
        for row, sequence in enumerate(sequences)
        for token_id, bias in sequence.sampling.logit_bias
    }
    if biases:
        positions = upload(torch.tensor(list(biases)), logits.device)
        logits.view(-1)[positions] += upload(torch.tensor(list(biases.values())), logits.device)


def _penalize_repetition(logits: torch.Tensor, sequences: abc.Sequence[Sequence]) -> None:
    """Divides the positive and multiplies the negative logits of all tokens in prompt and output (Keskar et
    al.: "CTRL", 2019, section 4.1; as in Hugging Face transformers)."""
    rows = [row for row, sequence in enumerate(sequences) if sequence.sampling.repetition_penalty != 1.0]
    if not rows:
        return
    positions = _positions(logits.shape[1], sequences, rows, lambda sequence: sequence.token_ids)
    penalties = [sequence.sampling.repetition_penalty for sequence in sequences]
    flat = logits.view(-1)
    index, penalty = _to_device(logits, positions, np.array(penalties)[positions // logits.shape[1]])
    values = flat[index]
    flat[index] = torch.where(values < 0, values * penalty, values / penalty)


def _penalize_frequency(logits: torch.Tensor, sequences: abc.Sequence[Sequence]) -> None:
    """Subtracts, for each token of the output, `frequency_penalty` times its count plus `presence_penalty`
    (OpenAI API reference, "frequency and presence penalties")."""
    rows = [
        row
        for row, sequence in enumerate(sequences)
        if sequence.output_tokens
        and (sequence.sampling.frequency_penalty or sequence.sampling.presence_penalty)
    ]
    if not rows:
        return
    every = _positions(
        logits.shape[1], sequences, rows, lambda sequence: sequence.token_ids[sequence.prompt_tokens :]
    )
    positions, counts = np.unique(every, return_counts=True)
    frequency = np.array([sequence.sampling.frequency_penalty for sequence in sequences])
    presence = np.array([sequence.sampling.presence_penalty for sequence in sequences])
    row = positions // logits.shape[1]
    index, penalty = _to_device(logits, positions, frequency[row] * counts + presence[row])
    logits.view(-1)[index] -= penalty


def _positions(
    vocab: int,
    sequences: abc.Sequence[Sequence],
    rows: list[int],
    tokens: Callable[[Sequence], list[int]],
) -> np.typing.NDArray[np.int64]:
    """Flat positions in [rows, vocab] of the tokens of `rows`, repeated as often as the tokens are."""
    return np.concatenate([np.array(tokens(sequences[row]), dtype=np.int64) + row * vocab for row in rows])


def _to_device(
    logits: torch.Tensor, positions: np.typing.NDArray[np.int64], values: np.typing.NDArray[np.float64]
) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        upload(torch.from_numpy(positions), logits.device),
        upload(torch.from_numpy(values.astype(np.float32)), logits.device),
    )
