"""How fast this worker is, measured on its own engine before it registers; leaves the pool as it was."""

from __future__ import annotations

import time
from collections.abc import Sequence as Rows

import numpy as np
import torch

from baton.engine.batch import Chunk
from baton.engine.engine import Engine
from baton.engine.sequence import Sequence
from baton.fleet import WorkerProfile
from baton.request import GenerationRequest, SamplingParams
from baton.worker.term_fit import Vector, nonnegative_solution

_PROMPT_TOKENS = (16, 64, 256)
_DECODE_STEPS = 4
_BATCH = 4
_COPY_BYTES = 16 << 20
_STEADY = 1e-9
"""Added to the diagonal where measurements do not tell two terms apart, as with a pool of two blocks."""


def measure_profile(engine: Engine) -> WorkerProfile:
    """The shorter of two passes over prompts of 16, 64 and 256 tokens; the shortest of four decode steps at batch 1
    over the longest and the shortest, and at batch 4 over the shortest; a copy of 16 MiB.

    Three lengths tell apart what grows with tokens, what with their pairs, and what does not; two contexts and two
    batches the rest of a step. What noise hides is 0.
    """
    longest = engine.max_model_tokens - _DECODE_STEPS - 1
    lengths = [min(tokens, longest) for tokens in _PROMPT_TOKENS]
    batch = min(_BATCH, engine.blocks.num_blocks // engine.blocks_for(lengths[0] + _DECODE_STEPS))
    rounds = np.array([[_measure(engine, tokens, 1) for tokens in lengths] for _ in range(2)])
    passes_s, steps_s = rounds.min(axis=0).T
    _, batch_step_s = _measure(engine, lengths[0], batch)
    engine.blocks.clear_cache()
    pass_s, token_s, pair_s = _terms([(1, n, n * n / 2) for n in lengths], passes_s)
    step_s, sequence_s, context_s = _terms(
        [(1, 0, lengths[0]), (1, 0, lengths[-1]), (1, batch - 1, batch * lengths[0])],
        [steps_s[0], steps_s[-1], batch_step_s],
    )
    return WorkerProfile(
        prefill_tokens_per_s=1 / token_s if token_s else lengths[-1] / float(passes_s[-1]),
        decode_step_s=step_s or float(steps_s[0]),
        copy_bytes_per_s=_measure_copy(),
        prefill_s_per_pair=pair_s,
        decode_s_per_sequence=sequence_s,
        decode_s_per_context_token=context_s,
        prefill_pass_s=pass_s,
    )


def _terms(amounts: Rows[Rows[float]], seconds: Rows[float] | Vector) -> list[float]:
    """What each amount costs, none of it negative: least squares of relative errors."""
    rows = np.array(amounts, np.float64) / np.array(seconds)[:, None]
    scales = np.maximum(rows.max(axis=0), np.finfo(np.float64).tiny)
    rows = rows / scales
    terms = nonnegative_solution(rows.T @ rows + _STEADY * np.eye(rows.shape[1]), rows.sum(axis=0))
    return [float(term) for term in terms / scales]


def _measure(engine: Engine, prompt_tokens: int, batch: int) -> tuple[float, float]:
    """Seconds to compute one prompt, and of the shortest decode step of `batch` sequences that follow such ones."""
    sequences = [_new_sequence(engine, prompt_tokens, number) for number in range(batch)]
    began_at_s = time.perf_counter()
    engine.run([Chunk(sequences[0], prompt_tokens, (sequences[0],))])
    prefill_s = time.perf_counter() - began_at_s
    for sequence in sequences[1:]:
        engine.run([Chunk(sequence, prompt_tokens, (sequence,))])
    step_s = min(_step_s(engine, sequences) for _ in range(_DECODE_STEPS))
    for sequence in sequences:
        engine.free(sequence)
    return prefill_s, step_s


def _new_sequence(engine: Engine, prompt_tokens: int, number: int) -> Sequence:
    sampling = SamplingParams(max_tokens=_DECODE_STEPS + 1, temperature=0.0, ignore_eos=True)
    name = f"profile {number}"
    request = GenerationRequest(name, (0,) * prompt_tokens, sampling, cache_salt=f"\0{name}")
    sequence = engine.new_sequence(request, 0)
    engine.grow(sequence, prompt_tokens + _DECODE_STEPS)
    return sequence


def _step_s(engine: Engine, sequences: list[Sequence]) -> float:
    began_at_s = time.perf_counter()
    engine.run([Chunk(sequence, 1, (sequence,)) for sequence in sequences])
    return time.perf_counter() - began_at_s


def _measure_copy() -> float:
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    began_at_s = time.perf_counter()
    target.copy_(source)
    return _COPY_BYTES / (time.perf_counter() - began_at_s)
