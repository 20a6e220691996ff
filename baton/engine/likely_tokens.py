"""The filters that leave only likely tokens to chance: top_k, then top_p, then min_p.

Each of them keeps all tokens from some weight upwards, so together they are one cut-off a row. Ties at the
cut-off are kept, which makes the outcome independent of how equal weights happen to be sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baton.engine.device_copy import upload
from baton.request import SamplingParams

_WINDOW = 64
_BITS_OF_ONE = 0x3F80_0000  # float32 1.0 as an integer; positive floats are ordered as their bits are


def keep_likely(weights: torch.Tensor, sampling: Sequence[SamplingParams], *, may_wait: bool = True) -> None:
    """Sets to zero, in place, the weights of the tokens that row i's `sampling[i]` filters out.

    weights: float32 [rows, vocab], probabilities up to a factor a row, the largest of each row exactly 1.
    may_wait: whether the host may look at the weights to save the device work; not while it should run ahead.
    """
    device = weights.device
    vocab = weights.shape[1]
    ranked = [row for row, params in enumerate(sampling) if _is_ranked(params, vocab)]
    if not ranked and not any(params.min_p for params in sampling):
        return
    cutoffs = upload(torch.tensor([params.min_p for params in sampling]), device)
    if ranked:
        at = upload(torch.tensor(ranked), device)
        rows = weights if len(ranked) == len(sampling) else weights[at]
        found = _rank_cutoffs(rows, [sampling[row] for row in ranked], may_wait)
        cutoffs[at] = torch.maximum(cutoffs[at], found)
    # 1.0 and 0.0 instead of booleans: several times as fast on a CPU
    weights *= torch.ge(weights, cutoffs[:, None], out=torch.empty_like(weights))


def _is_ranked(params: SamplingParams, vocab: int) -> bool:
    return 0 < params.top_k < vocab or params.top_p < 1.0


def _rank_cutoffs(weights: torch.Tensor, sampling: Sequence[SamplingParams], may_wait: bool) -> torch.Tensor:
    """The smallest weight that top_k and then top_p keep, float32 [rows].

    With top_p a token is kept where the tokens above it hold less than top_p of the mass that top_k has left
    (Holtzman et al.: "The curious case of neural text degeneration", 2020). Sorting a whole vocabulary is slow and
    a nucleus is small, so only the largest weights are sorted, and the rows in which they do not suffice are
    bisected: all rows, where nobody may wait to see which those are.
    """
    vocab, device = weights.shape[1], weights.device
    limits = [params.top_k if 0 < params.top_k < vocab else vocab for params in sampling]
    window = min(vocab, max(_WINDOW, *(limit for limit in limits if limit < vocab), 0))
    top_k = upload(torch.tensor(limits), device)
    top_p = upload(torch.tensor([params.top_p for params in sampling], dtype=torch.float64), device)
    is_limited = (top_k < vocab)[:, None]
    largest = weights.topk(window).values
    kth = largest.gather(1, top_k.clamp(max=window)[:, None] - 1).where(is_limited, 0.0)
    kept = largest * (largest >= kth)
    running = kept.cumsum(-1, dtype=torch.float64)
    total = torch.where(is_limited, running[:, -1:], weights.sum(-1, keepdim=True, dtype=torch.float64))
    in_nucleus = running - kept < top_p[:, None] * total
    cutoffs = kept.gather(1, (in_nucleus.sum(-1, keepdim=True) - 1).clamp_(min=0))  # NaN is in no nucleus
    # Outside the window there may be more to keep, unless its smallest weight is below the cut already.
    smallest = largest[:, -1:]
    is_open = (smallest > 0) & (smallest >= torch.where(is_limited, kth, cutoffs))
    if window < vocab and not may_wait:
        cutoffs = torch.where(is_open, _bisect_cutoffs(weights, kth, top_p[:, None]), cutoffs)
    elif window < vocab and len(rows := is_open.squeeze(1).nonzero().squeeze(1)):
        cutoffs[rows] = _bisect_cutoffs(weights[rows], kth[rows], top_p[rows, None])
    return cutoffs.squeeze(1)


def _bisect_cutoffs(weights: torch.Tensor, floors: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The largest weight from which upwards there is top_p of the mass at or above `floors`, all [rows, 1].

    Bisects the bits of the weight: exact after 30 steps, without a sort and whatever the distribution.
    """
    is_kept = torch.empty_like(weights)

    def mass_from(cutoffs: torch.Tensor) -> torch.Tensor:
        torch.ge(weights, cutoffs, out=is_kept)
        return is_kept.mul_(weights).sum(-1, keepdim=True, dtype=torch.float64)

    target = top_p * mass_from(floors)
    low = floors.view(torch.int32)
    high = torch.full_like(low, _BITS_OF_ONE)
    for _ in range(_BITS_OF_ONE.bit_length()):
        middle = low + (high - low + 1) // 2
        is_enough = mass_from(middle.view(torch.float32)) >= target
        low, high = middle.where(is_enough, low), high.where(is_enough, middle - 1)
    return low.view(torch.float32)
