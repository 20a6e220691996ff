"""Chooses the next token of every sequence of a step from the model's logits.

    logits --edits--> (bias, endings, penalties) --greedy--> argmax
                                                 --random--> temperature, top_k, top_p, min_p, one draw

A row's outcome depends on its logits and its sequence alone, never on the rest of the batch: the draw is a race
whose arrival times are keyed by (seed, token index, token), and in which logits that differ by a rounding of
the model's have the same winner.
"""

from __future__ import annotations

from collections import abc

import torch

from baton.engine import philox, race, row_scan
from baton.engine.likely_tokens import keep_likely
from baton.engine.logit_edits import edit_logits, has_edits
from baton.engine.sequence import Sequence
from baton.errors import WorkerFailed
from baton.request import Token

Logprobs = tuple[float | None, tuple[tuple[int, float], ...]]
"""Logprob of the chosen token, and the most likely tokens with theirs."""


class NonFiniteLogits(WorkerFailed):
    """The model computed NaN or infinity for one sequence; the others of its step are sound."""

    def __init__(self, sequence: Sequence, logit: float) -> None:
        super().__init__(
            f"request {sequence.request_id}: the largest logit of token {sequence.output_tokens} "
            f"is {logit}, not a finite number"
        )
        self.request_id = sequence.request_id


class Sampler:
    """Samples for a model of `vocab_size` tokens that ends its sequences with one of `eos_token_ids`."""

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids

    def sample(self, logits: torch.Tensor, sequences: abc.Sequence[Sequence]) -> list[Token]:
        """The next token of each sequence, with logprobs where asked for; changes neither argument.

        logits: float32 [rows, vocab_size], contiguous, on any device; row i belongs to `sequences[i]`. A
        logit of -inf rules its token out. Raises NonFiniteLogits naming the request where a row holds NaN or
        +inf, or rules all tokens out.
        """
        assert logits.shape == (len(sequences), self.vocab_size), f"logits have shape {tuple(logits.shape)}"
        if not sequences:
            return []
        token_ids: list[int] = _most_likely(logits, sequences)[0].tolist()
        special = [
            row
            for row, sequence in enumerate(sequences)
            if not sequence.sampling.is_greedy or has_edits(sequence)
        ]
        if special:
            choices = self._choose(logits[special], [sequences[row] for row in special])
            for row, token_id in zip(special, choices, strict=True):
                token_ids[row] = token_id
        logprobs = _logprobs(logits, sequences, token_ids)
        return [
            Token(sequence.output_tokens, token_id, *logprobs.get(row, (None, ())))
            for row, (sequence, token_id) in enumerate(zip(sequences, token_ids, strict=True))
        ]

    def _choose(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
        """Token ids of rows with edits or chance; overwrites `logits`."""
        edit_logits(logits, sequences, self.eos_token_ids)
        token_ids, peaks = _most_likely(logits, sequences)
        random = [row for row, sequence in enumerate(sequences) if not sequence.sampling.is_greedy]
        if len(random) == len(sequences):
            token_ids = _draw(logits, peaks, sequences)
        elif random:
            drawn = _draw(logits[random], peaks[random], [sequences[row] for row in random])
            token_ids[random] = drawn
        choices: list[int] = token_ids.tolist()
        return choices


def _most_likely(
    logits: torch.Tensor, sequences: abc.Sequence[Sequence]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The most likely token of each row, int64 [rows], and its logit, float32 [rows]."""
    token_ids, peaks = row_scan.argmax(logits)
    is_finite = peaks.isfinite()  # NaN and +inf win, and -inf only where there is nothing else
    if not is_finite.all():
        row = is_finite.tolist().index(False)
        raise NonFiniteLogits(sequences[row], peaks[row].item())
    return token_ids, peaks


def _draw(logits: torch.Tensor, peaks: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """One token of each row at random, int64 [rows]; overwrites `logits`, whose largest are `peaks`."""
    least = torch.finfo(torch.float32).tiny
    temperatures = [max(sequence.sampling.temperature, least) for sequence in sequences]
    scale = torch.tensor(temperatures, dtype=torch.float32, device=logits.device)
    # Relative to the peak, so that neither a large logit nor a tiny temperature overflows.
    weights = logits.sub_(peaks[:, None]).div_(scale[:, None]).exp_()
    keep_likely(weights, [sequence.sampling for sequence in sequences])
    keys = philox.words(
        [sequence.seed for sequence in sequences], [sequence.output_tokens for sequence in sequences]
    )
    return race.first(weights, torch.from_numpy(keys).to(logits.device))


def _logprobs(
    logits: torch.Tensor, sequences: abc.Sequence[Sequence], token_ids: list[int]
) -> dict[int, Logprobs]:
    """Logprobs by row, for the rows that ask, from the model's own logits."""
    counts = {
        row: sequence.sampling.logprobs
        for row, sequence in enumerate(sequences)
        if sequence.sampling.logprobs is not None
    }
    if not counts:
        return {}
    rows = list(counts)
    logprobs = torch.log_softmax(logits[rows], dim=-1)
    chosen_ids = torch.tensor([token_ids[row] for row in rows], device=logits.device)
    chosen = logprobs.gather(1, chosen_ids[:, None]).squeeze(1).tolist()
    top = logprobs.topk(min(max(counts.values()), logits.shape[1]))
    tops = [
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return {row: (chosen[i], tops[i][: counts[row]]) for i, row in enumerate(rows)}
