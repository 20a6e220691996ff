"""The filters that leave only likely tokens to chance: top_k, then top_p, then min_p.

Each of them keeps all tokens from some weight upwards, so together they are one cut-off a row. Ties at the
cut-off are kept, which makes the outcome independent of how equal weights happen to be sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from baton.request import SamplingParams

_WINDOW = 64
_BITS_OF_ONE = 0x3F80_0000  # float32 1.0 as an integer; positive floats are ordered as their bits are


def keep_likely(weights: torch.Tensor, sampling: Sequence[SamplingParams]) -> None:
    """Sets to zero, in place, the weights of the tokens that row i's `sampling[i]` filters out.

    weights: float32 [rows, vocab], probabilities up to a factor a row, the largest of each row exactly 1.
    """
    vocab = weights.shape[1]
    ranked = [row for row, params in enumerate(sampling) if _is_ranked(params, vocab)]
    if not ranked and not any(params.min_p for params in sampling):
        return
    cutoffs = torch.tensor([params.min_p for params in sampling], device=weights.device)
    if ranked:
        top_k = torch.tensor([sampling[row].top_k or vocab for row in ranked], device=weights.device)
        top_p = torch.tensor([sampling[row].top_p for row in ranked], device=weights.device).double()
        rows = weights if len(ranked) == len(sampling) else weights[ranked]
        cutoffs[ranked] = torch.maximum(cutoffs[ranked], _rank_cutoffs(rows, top_k, top_p))
    # 1.0 and 0.0 instead of booleans: several times as fast on a CPU
    weights *= torch.ge(weights, cutoffs[:, None], out=torch.empty_like(weights))


def _is_ranked(params: SamplingParams, vocab: int) -> bool:
    return 0 < params.top_k < vocab or params.top_p < 1.0


def _rank_cutoffs(weights: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest weight that top_k and then top_p keep, float32 [rows].

    top_k: int64 [rows], `vocab` or more where off. top_p: float64 [rows] in (0, 1]: a token is kept where
    the tokens above it hold less than top_p of the mass that top_k has left (Holtzman et al.: "The curious
    case of neural text degeneration", 2020). Sorting a whole vocabulary is slow and a nucleus is small, so
    only the largest weights are sorted, and the rows in which they do not suffice are bisected.
    """
    vocab = weights.shape[1]
    is_limited = (top_k < vocab)[:, None]
    window = min(vocab, max(_WINDOW, int(top_k[:, None].where(is_limited, 0).max())))
    largest = weights.topk(window).values
    kth = largest.gather(1, top_k.clamp(max=window)[:, None] - 1).where(is_limited, 0.0)
    kept = largest * (largest >= kth)
    running = kept.cumsum(-1, dtype=torch.float64)
    total = torch.where(is_limited, running[:, -1:], weights.sum(-1, keepdim=True, dtype=torch.float64))
    in_nucleus = running - kept < top_p[:, None] * total
    cutoffs = kept.gather(1, in_nucleus.sum(-1, keepdim=True) - 1)
    # Outside the window there may be more to keep, unless its smallest weight is below the cut already.
    smallest = largest[:, -1:]
    is_open = (smallest > 0) & (smallest >= torch.where(is_limited, kth, cutoffs))
    rows = is_open.squeeze(1).nonzero().squeeze(1)
    if window < vocab and len(rows):
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
