"""Sequences and parameters for the sampler's tests, and a slow, obvious sampler to compare with."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import torch

from baton.engine.philox import words
from baton.engine.race import exponentials
from baton.engine.sequence import Sequence
from baton.request import SamplingParams

GREEDY = SamplingParams(max_tokens=1000, temperature=0.0)
RANDOM = SamplingParams(max_tokens=1000, temperature=1.0)


def sequence_of(
    sampling: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None
) -> Sequence:
    prompt, output = [0] if prompt is None else prompt, output or []
    return Sequence("request-7", 0, sampling, b"", prompt + output, len(prompt))


def edited_logits(logits: list[float], sequence: Sequence, eos: frozenset[int]) -> list[float]:
    sampling, output = sequence.sampling, sequence.token_ids[sequence.prompt_tokens :]
    edited = list(logits)
    if len(output) < sampling.min_tokens:
        for token_id in eos | set(sampling.stop_token_ids):
            edited[token_id] = -math.inf
    for token_id, bias in sampling.logit_bias:
        edited[token_id] += bias
    for token_id in set(sequence.token_ids):
        logit = edited[token_id]
        penalty = sampling.repetition_penalty
        edited[token_id] = logit / penalty if logit > 0 else logit * penalty
    for token_id, count in Counter(output).items():
        edited[token_id] -= sampling.frequency_penalty * count + sampling.presence_penalty
    return edited


def filtered_distribution(logits: list[float], sampling: SamplingParams) -> list[float]:
    """Probabilities after temperature, top_k, top_p and min_p; ties at a cut-off are kept."""

    def normalised(weights: list[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]

    peak = max(logits)
    probabilities = normalised([math.exp((logit - peak) / sampling.temperature) for logit in logits])
    if sampling.top_k:
        kth = sorted(probabilities, reverse=True)[: sampling.top_k][-1]
        probabilities = normalised([p if p >= kth else 0.0 for p in probabilities])
    if sampling.top_p < 1:
        above = [sum(q for q in probabilities if q > p) for p in probabilities]
        probabilities = normalised(
            [p if mass < sampling.top_p else 0.0 for p, mass in zip(probabilities, above, strict=True)]
        )
    floor = sampling.min_p * max(probabilities)
    return normalised([p if p >= floor else 0.0 for p in probabilities])


def is_borderline(logits: list[float], sampling: SamplingParams) -> bool:
    """Whether float32 may rightly decide otherwise: a filter cuts within rounding of a probability."""
    exact = [p > 0 for p in filtered_distribution(logits, sampling)]
    for nudge in (1e-5, -1e-5):
        top_p = sampling.top_p if sampling.top_p == 1 else min(1 - 1e-9, max(1e-9, sampling.top_p + nudge))
        nudged = replace(sampling, top_p=top_p, min_p=min(1.0, sampling.min_p * (1 + nudge)))
        if [p > 0 for p in filtered_distribution(logits, nudged)] != exact:
            return True
    return False


def slow_choices(logits: list[float], sequence: Sequence, eos: frozenset[int]) -> set[int]:
    """The next token; more than one where they arrive within rounding of each other."""
    edited = edited_logits(logits, sequence, eos)
    if sequence.sampling.is_greedy:
        return {token_id for token_id, logit in enumerate(edited) if logit >= max(edited) - 1e-5}
    probabilities = filtered_distribution(edited, sequence.sampling)
    keys = torch.from_numpy(words([sequence.seed], [sequence.output_tokens]))
    times = exponentials(keys, len(logits))[0].tolist()
    arrivals = {t: time / p for t, (time, p) in enumerate(zip(times, probabilities, strict=True)) if p}
    return {token_id for token_id, arrival in arrivals.items() if arrival <= min(arrivals.values()) * 1.001}
