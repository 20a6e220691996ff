"""Chooses the next token of every sequence of a step from the model's logits.

    logits --edits--> (bias, endings, penalties) --greedy--> argmax
                                                 --random--> temperature, top_k, top_p, min_p, one draw

A row's outcome depends on its logits and its sequence alone, never on the rest of the batch: the draw is a race
whose arrival times are keyed by (seed, token index, token), and in which logits that differ by a rounding of
the model's have the same winner.
"""

from __future__ import annotations

import math
from collections import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.engine import philox, race, row_scan
from baton.engine.device_copy import Readback, upload
from baton.engine.likely_tokens import keep_likely
from baton.engine.logit_edits import edit_logits, has_edits
from baton.engine.sequence import Sequence
from baton.errors import WorkerFailed
from baton.request import Token

Logprobs = tuple[float | None, tuple[tuple[int, float], ...]]
"""Logprob of the chosen token, and the most likely tokens with theirs."""


class NonFiniteLogits(WorkerFailed):
    """The model computed NaN or infinity for one sequence; the others of its step are sound."""

    def __init__(self, sequence: Sequence, index: int, logit: float) -> None:
        super().__init__(
            f"request {sequence.request_id}: the largest logit of token {index} is {logit}, not a finite number"
        )
        self.request_id = sequence.request_id


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """The tokens of one step, drawn on the device and on their way to the host.

    token_ids: int64 [rows], on the device. indices: of each row's token in its sequence's output. logprobs: how
    many are asked for, by row.
    """

    token_ids: Tensor
    indices: tuple[int, ...]
    logprobs: dict[int, int]
    _readback: Readback

    def wait(self) -> None:
        """Until the device has drawn them."""
        self._readback.wait()

    def read(self, sequences: abc.Sequence[Sequence | None]) -> list[tuple[Sequence, Token]]:
        """Each row's sequence and its token, but for rows whose sequence is None: nobody wants those any more.
        Raises NonFiniteLogits naming the request where the model computed NaN or +inf, or all tokens were ruled
        out."""
        ids, peaks, *logprobs = self._readback.wait()
        for row, (sequence, peak) in enumerate(zip(sequences, peaks.tolist(), strict=True)):
            if sequence is not None and not math.isfinite(peak):
                raise NonFiniteLogits(sequence, self.indices[row], peak)
        told = _told(self.logprobs, *logprobs) if logprobs else {}
        rows = enumerate(zip(sequences, self.indices, ids.tolist(), strict=True))
        return [
            (sequence, Token(index, token_id, *told.get(row, (None, ()))))
            for row, (sequence, index, token_id) in rows
            if sequence is not None
        ]


class Sampler:
    """Samples for a model of `vocab_size` tokens that ends its sequences with one of `eos_token_ids`."""

    def __init__(self, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids

    def draw(self, logits: Tensor, sequences: abc.Sequence[Sequence]) -> Drawn:
        """The next token of each sequence, with logprobs where asked for; changes neither argument, and waits for
        nothing that a GPU computes.

        logits: float32 [rows, vocab_size], contiguous, on any device; row i belongs to `sequences[i]`. A
        logit of -inf rules its token out.
        """
        assert logits.shape == (len(sequences), self.vocab_size), f"logits have shape {tuple(logits.shape)}"
        indices = tuple(sequence.output_tokens for sequence in sequences)
        if not sequences:
            nothing = torch.empty(0, dtype=torch.int64, device=logits.device)
            return Drawn(nothing, indices, {}, Readback(nothing, nothing))
        token_ids, peaks = row_scan.argmax(logits)
        special = [
            row
            for row, sequence in enumerate(sequences)
            if not sequence.sampling.is_greedy or has_edits(sequence)
        ]
        if special:
            rows = _rows(special, logits.device)
            token_ids[rows], edited = self._choose(logits[rows], [sequences[row] for row in special])
            # What the model made of a row counts even where an edit has ruled the worst of it out.
            peaks[rows] = torch.where(peaks[rows].isfinite(), edited, peaks[rows])
        counts = {
            row: sequence.sampling.logprobs
            for row, sequence in enumerate(sequences)
            if sequence.sampling.logprobs is not None
        }
        logprobs = _logprobs(logits, counts, token_ids) if counts else ()
        return Drawn(token_ids, indices, counts, Readback(token_ids, peaks, *logprobs))

    def _choose(self, logits: Tensor, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
        """Tokens of rows with edits or chance, and the largest logit of each; overwrites `logits`."""
        edit_logits(logits, sequences, self.eos_token_ids)
        token_ids, peaks = row_scan.argmax(logits)
        random = [row for row, sequence in enumerate(sequences) if not sequence.sampling.is_greedy]
        if len(random) == len(sequences):
            token_ids = _draw(logits, peaks, sequences)
        elif random:
            rows = _rows(random, logits.device)
            token_ids[rows] = _draw(logits[rows], peaks[rows], [sequences[row] for row in random])
        return token_ids, peaks


def _rows(rows: list[int], device: torch.device) -> Tensor:
    return upload(torch.tensor(rows), device)


def _draw(logits: Tensor, peaks: Tensor, sequences: list[Sequence]) -> Tensor:
    """One token of each row at random, int64 [rows]; overwrites `logits`, whose largest are `peaks`. A row whose
    largest is not finite gets any token."""
    least = torch.finfo(torch.float32).tiny
    temperatures = [max(sequence.sampling.temperature, least) for sequence in sequences]
    scale = upload(torch.tensor(temperatures, dtype=torch.float32), logits.device)
    # Relative to the peak, so that neither a large logit nor a tiny temperature overflows.
    weights = logits.sub_(peaks[:, None]).div_(scale[:, None]).exp_()
    keep_likely(weights, [sequence.sampling for sequence in sequences], may_wait=not logits.is_cuda)
    keys = philox.words(
        [sequence.seed for sequence in sequences], [sequence.output_tokens for sequence in sequences]
    )
    return race.first(weights, upload(torch.from_numpy(keys), logits.device))


def _logprobs(logits: Tensor, counts: dict[int, int], token_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the model's own logits, for the rows that ask: the logprob of the chosen token, float32 [rows], and the
    most likely tokens, int64 [rows, most], with theirs."""
    rows = _rows(list(counts), logits.device)
    logprobs = torch.log_softmax(logits[rows], dim=-1)
    chosen = logprobs.gather(1, token_ids[rows, None]).squeeze(1)
    top = logprobs.topk(min(max(counts.values()), logits.shape[1]))
    return chosen, top.indices, top.values


def _told(counts: dict[int, int], chosen: Tensor, ids: Tensor, values: Tensor) -> dict[int, Logprobs]:
    """What `_logprobs` found, on the host, by row."""
    tops = [tuple(zip(*top, strict=True)) for top in zip(ids.tolist(), values.tolist(), strict=True)]
    answers = zip(counts.items(), chosen.tolist(), tops, strict=True)
    return {row: (logprob, top[:count]) for (row, count), logprob, top in answers}
