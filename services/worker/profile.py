"""How fast this worker is, measured on its own engine before it registers; leaves the pool as it was."""

from __future__ import annotations

import math
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
_CONTEXT_TOKENS = 2048
_CHUNK_TOKENS = 64
_DECODE_STEPS = 4
_BATCH = 4
_ROUNDS = 3
_COPY_BYTES = 16 << 20
_STEADY = 1e-9
"""Added to the diagonal where measurements do not tell two terms apart, as with a pool of two blocks."""


def measure_profile(engine: Engine) -> WorkerProfile:
    """The shortest of three of each: passes over prompts of 16, 64 and 256 tokens and over 64 that follow 2,048;
    decode steps at batch 1 over the shortest and the longest context, and at batch 4 over the shortest. And a copy
    of 16 MiB.

    Lengths tell apart what grows with tokens, what with their pairs, and what does not; contexts and batches the
    rest of a step. A context that is there already is not computed for it. What noise hides is 0. The spread is
    that of all rounds but the first, which finds caches cold.
    """
    longest = engine.max_model_tokens - _DECODE_STEPS - 1
    chunk = min(_CHUNK_TOKENS, longest // 2)
    context = min(_CONTEXT_TOKENS, longest - chunk)
    lengths = [min(tokens, longest) for tokens in _PROMPT_TOKENS]
    prompts = [*((tokens, 0) for tokens in lengths), (chunk, context)]
    batch = min(_BATCH, engine.blocks.num_blocks // engine.blocks_for(lengths[0] + _DECODE_STEPS))
    batches = [(1, lengths[0]), (1, context), (batch, lengths[0])]
    all_passes_s = np.array([[_pass_s(engine, *prompt) for prompt in prompts] for _ in range(_ROUNDS)])
    all_steps_s = np.hstack([[_steps_s(engine, *running) for running in batches] for _ in range(_ROUNDS)]).T
    passes_s, steps_s = all_passes_s.min(axis=0), all_steps_s.min(axis=0)
    pass_s, token_s, pair_s = _terms([(1, n, n * (seen + n / 2)) for n, seen in prompts], passes_s)
    step_s, sequence_s, context_s = _terms([(1, n - 1, n * seen) for n, seen in batches], steps_s)
    return WorkerProfile(
        prefill_tokens_per_s=1 / token_s if token_s else lengths[-1] / float(passes_s[len(lengths) - 1]),
        decode_step_s=step_s or float(steps_s[0]),
        copy_bytes_per_s=_measure_copy(),
        prefill_s_per_pair=pair_s,
        decode_s_per_sequence=sequence_s,
        decode_s_per_context_token=context_s,
        prefill_pass_s=pass_s,
        step_spread=_spread(all_passes_s[1:], all_steps_s[_DECODE_STEPS:]),
    )


def _terms(amounts: Rows[Rows[float]], seconds: Vector) -> list[float]:
    """What each amount costs, none of it negative: least squares of relative errors."""
    rows = np.array(amounts, np.float64) / seconds[:, None]
    scales = np.maximum(rows.max(axis=0), np.finfo(np.float64).tiny)
    rows = rows / scales
    terms = nonnegative_solution(rows.T @ rows + _STEADY * np.eye(rows.shape[1]), rows.sum(axis=0))
    return [float(term) for term in terms / scales]


def _spread(*measured_s: Vector) -> float:
    """Standard deviation of the logarithm of what was measured, [times, kinds] each, around its kind's mean."""
    deviations = [np.log(seconds) - np.log(seconds).mean(axis=0) for seconds in measured_s]
    free = sum((len(seconds) - 1) * seconds.shape[1] for seconds in measured_s)
    return math.sqrt(sum(float((each**2).sum()) for each in deviations) / free)


def _pass_s(engine: Engine, tokens: int, context_tokens: int) -> float:
    """Seconds to compute `tokens` of a prompt that follow `context_tokens`."""
    sequence = _new_sequence(engine, context_tokens + tokens, context_tokens, 0)
    seconds = _run_s(engine, [Chunk(sequence, tokens, (sequence,))])
    _give_back(engine, [sequence])
    return seconds


def _steps_s(engine: Engine, batch: int, context_tokens: int) -> list[float]:
    """Seconds of some decode steps of `batch` sequences that see `context_tokens` each."""
    sequences = [_new_sequence(engine, context_tokens, context_tokens - 1, n) for n in range(batch)]
    steps_s = [_run_s(engine, [Chunk(one, 1, (one,)) for one in sequences]) for _ in range(_DECODE_STEPS)]
    _give_back(engine, sequences)
    return steps_s


def _give_back(engine: Engine, sequences: list[Sequence]) -> None:
    """To the free blocks, so that the next round has the same ones: memory that is touched first costs more."""
    for sequence in sequences:
        engine.free(sequence)
    engine.blocks.clear_cache()


def _run_s(engine: Engine, chunks: list[Chunk]) -> float:
    began_at_s = time.perf_counter()
    engine.run(chunks)
    return time.perf_counter() - began_at_s


def _new_sequence(engine: Engine, prompt_tokens: int, computed_tokens: int, number: int) -> Sequence:
    """One whose first tokens count as computed: attention takes as long over whatever their blocks hold."""
    sampling = SamplingParams(max_tokens=_DECODE_STEPS + 1, temperature=0.0, ignore_eos=True)
    name = f"profile {number}"
    request = GenerationRequest(name, (0,) * prompt_tokens, sampling, cache_salt=f"\0{name}")
    sequence = engine.new_sequence(request, 0)
    engine.grow(sequence, prompt_tokens + _DECODE_STEPS)
    sequence.computed_tokens = computed_tokens
    return sequence


def _measure_copy() -> float:
    source, target = (torch.zeros(_COPY_BYTES, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    began_at_s = time.perf_counter()
    target.copy_(source)
    return _COPY_BYTES / (time.perf_counter() - began_at_s)
