"""The two-level scans against their one-level forms, for widths of every kind of stride."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baton.engine import row_scan

torch.set_num_threads(1)

WIDTHS = st.sampled_from([1, 2, 7, 64, 97, 256, 512, 768, 1000, 1280])


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """Rows of which most elements may be zero, and some equal."""
    rows, width = draw(st.integers(1, 4)), draw(WIDTHS)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = (
        torch.randint(1, 9, (rows, width), generator=generator).float().pow(draw(st.sampled_from([1, 9])))
    )
    values *= torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0.01, 0.5, 1.0]))
    values[values.sum(-1) == 0, width // 2] = 1.0
    return values


@given(weights())
def test_argmax_is_the_first_of_the_largest(values: torch.Tensor) -> None:
    positions, peaks = row_scan.argmax(values)
    assert peaks.tolist() == values.amax(-1).tolist()
    assert positions.tolist() == [row.index(max(row)) for row in values.tolist()]


@pytest.mark.parametrize("position", [0, 255, 256, 700])
def test_nan_wins_argmax(position: int) -> None:
    values = torch.randn(2, 1024)
    values[1, position] = torch.nan
    positions, peaks = row_scan.argmax(values)
    assert positions[1] == position
    assert peaks.isnan().tolist() == [False, True]
