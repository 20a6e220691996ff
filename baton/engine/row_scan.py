"""Scans over rows as long as a vocabulary: in native code, or in two levels, over strides, then inside one.

Torch's reductions use the whole width of the machine; its search for a position does not. Looking into one stride
only makes `argmax` about ten times as fast on a CPU as its one-level form.
"""

from __future__ import annotations

import torch

from baton.engine.kernels import are_built, native

_WIDEST_STRIDE = 256


def argmax(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Position, int64 [rows], and value [rows] of the largest element of each row; the first of equals.

    values: [rows, width], contiguous. NaN counts as the largest.
    """
    assert values.is_contiguous(), f"rows are strided {values.stride()}"
    if are_built() and values.device.type == "cpu" and values.dtype == torch.float32:
        return _native_argmax(values)
    strides = _strides(values)
    peaks, stride = strides.amax(-1).max(-1)
    offset = _one_of_each(strides, stride).argmax(-1)
    return stride * strides.shape[2] + offset, peaks


def _native_argmax(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, width = values.shape
    positions, peaks = torch.empty(rows, dtype=torch.int64), torch.empty(rows)
    native.find_largest(
        *(values.data_ptr(), positions.data_ptr(), peaks.data_ptr(), rows, width, torch.get_num_threads())
    )
    return positions, peaks


def _strides(rows: torch.Tensor) -> torch.Tensor:
    """A view [rows, strides, stride] with the widest stride that is a power of two and divides the width."""
    width = rows.shape[1]
    return rows.view(rows.shape[0], -1, min(_WIDEST_STRIDE, width & -width))


def _one_of_each(strides: torch.Tensor, stride: torch.Tensor) -> torch.Tensor:
    """Stride `stride[i]` of row i: [rows, stride]."""
    return strides[torch.arange(strides.shape[0], device=strides.device), stride]
