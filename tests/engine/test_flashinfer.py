"""FlashInfer's form of a batch, and what is told where it cannot serve; its kernels run on a GPU alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.attention import flashinfer as backend
from baton.engine.attention import load_backend
from baton.engine.attention.flashinfer import FlashInferAttention, Pages
from baton.engine.batch import Chunk
from baton.engine.sequence import Sequence
from baton.engine.step import StepInputs
from baton.errors import ConfigError
from baton.request import SamplingParams

CUDA = torch.device("cuda:0")
CONTEXTS = st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=6)
"""Tokens in the pool and new ones."""


@settings(max_examples=40, deadline=None)
@given(contexts=CONTEXTS, block_size=st.sampled_from([1, 16, 32]))
def test_every_token_is_found_where_the_block_table_has_it(
    contexts: list[tuple[int, int]], block_size: int
) -> None:
    chunks, free = [], iter(torch.randperm(700).tolist())
    for past, new in contexts:
        tokens = past + new
        blocks = [next(free) for _ in range(-(-tokens // block_size))]
        sequence = Sequence("r", 0, SamplingParams(max_tokens=1), b"", [0] * tokens, tokens, blocks, past)
        chunks.append(Chunk(sequence, new))
    batch = StepInputs.of(chunks, block_size, torch.device("cpu")).attention
    pages = Pages.of(batch)
    assert pages.query_start.tolist() == batch.query_start.tolist()
    for row, tokens in enumerate(batch.context_tokens):
        first, last = pages.page_start[row].item(), pages.page_start[row + 1].item()
        assert tokens == (last - first - 1) * block_size + pages.last_page_tokens[row].item()
        assert pages.pages[first:last].tolist() == batch.block_tables[row, : last - first].tolist()
    assert len(pages.pages) == pages.page_start[-1]


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "IS_INSTALLED", False)
    with pytest.raises(ConfigError, match=r"'flashinfer' needs the package flashinfer-python \(pip install"):
        load_backend("flashinfer", CUDA, 64, torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "head_dim", "dtype", "reason"),
    [
        ("cpu", 64, torch.bfloat16, "does not run on cpu"),
        ("cuda:0", 80, torch.bfloat16, "takes heads of 64, 128, 256 dimensions, not 80"),
        ("cuda:0", 64, torch.float32, "takes bfloat16 and float16, not float32"),
        ("cuda:0", 128, torch.float16, None),
    ],
)
def test_what_it_cannot_compute_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, head_dim: int, dtype: torch.dtype, reason: str | None
) -> None:
    monkeypatch.setattr(backend, "IS_INSTALLED", True)
    monkeypatch.setattr(backend, "HAS_TRITON", True)
    assert FlashInferAttention.hindrance(torch.device(device), head_dim, dtype) == reason
