"""Draws tokens by an exponential race: each token arrives after a random time, the sooner the likelier it is, and
the first to arrive is the one.

With rates `weights`, token t is first with probability weights[t] / sum(weights) (the Gumbel-max trick in
another form: Maddison, Tarlow, Minka: "A* sampling", 2014). Inverting the distribution function at one number
would be cheaper, but there every weight moves the borders of all tokens behind it: one token more or less at
the cut-off of top_p changes every second draw. A model's logits do differ, by some 1e-6, with the shape of the
batch that they are computed in. In a race such a difference counts only where two tokens arrive that close
together at the head, however large the vocabulary.
"""

from __future__ import annotations

import torch

from baton.engine import row_scan

_LOW_31_BITS = 0x7FFF_FFFF
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - 2**32)  # as int32


def first(weights: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The winner of each row's race, int64 [rows]; overwrites `weights`.

    weights: float32 [rows, width], contiguous, not negative and not all zero; a weight of zero never wins.
    keys: int32 [rows, 2], random words on the same device; equal keys give equal arrival times.
    """
    return row_scan.argmax(weights.div_(exponentials(keys, weights.shape[1])))[0]


def exponentials(keys: torch.Tensor, width: int) -> torch.Tensor:
    """Exponential variates of rate 1, float32 [rows, width], each positive and finite: a function of its row's
    two key words and its position alone."""
    positions = torch.arange(width, dtype=torch.int32, device=keys.device)
    words = _scrambled(positions ^ keys[:, :1])
    words = _scrambled(words.bitwise_xor_(keys[:, 1:])).bitwise_and_(_LOW_31_BITS)
    # Small uniforms are the exact ones, and small times win races; 1 itself would give infinity.
    uniforms = words.float().add_(0.5).mul_(2.0**-31).clamp_max_(1 - 2.0**-24)
    return uniforms.neg_().log1p_().neg_()


def _scrambled(words: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words in which each bit of the input changes half of the output's ("lowbias32" of
    Wellons: "Prospecting for hash functions", 2018); in place. int32, whose products wrap around."""
    for shift, multiplier in zip((16, 15), _MULTIPLIERS, strict=True):
        words.bitwise_xor_(_shifted(words, shift)).mul_(multiplier)
    return words.bitwise_xor_(_shifted(words, 16))


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; that of torch copies the sign."""
    return (words >> bits).bitwise_and_((1 << (32 - bits)) - 1)
