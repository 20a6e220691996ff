"""One engine step as tensors: what the model reads, built once from the step's chunks."""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBatch
from baton.engine.batch import Chunk
from baton.engine.sequence import Sequence

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class StepInputs:
    """token_ids, positions, prompt_tokens: int64 [T], single-token chunks first. samplers: in the order of
    the chunks. logits_rows: int64 [R], one row a chunk that samples. sampler_rows: int64 [len(samplers)],
    indices into logits_rows, None where each has a row of its own."""

    token_ids: Tensor
    positions: Tensor
    prompt_tokens: Tensor
    attention: AttentionBatch
    samplers: tuple[Sequence, ...]
    logits_rows: Tensor
    sampler_rows: Tensor | None

    @classmethod
    def of(cls, chunks: Sequenced[Chunk], block_size: int, device: torch.device) -> StepInputs:
        """The inputs of `chunks` (at least one) on `device`."""
        assert all(chunk.length > 0 for chunk in chunks)
        order = sorted(range(len(chunks)), key=lambda index: chunks[index].length > 1)
        ordered = [chunks[index] for index in order]
        lengths = np.array([chunk.length for chunk in ordered])
        starts = np.array([chunk.sequence.computed_tokens for chunk in ordered])
        prompts = np.array([chunk.sequence.prompt_tokens for chunk in ordered])
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) + np.repeat(starts + lengths - ends, lengths)
        last_rows = np.empty_like(ends)
        last_rows[order] = ends - 1
        sampler_counts = np.array([len(chunk.samplers) for chunk in chunks])
        sampled = sampler_counts > 0
        sampler_rows = np.repeat(np.arange(sampled.sum()), sampler_counts[sampled])
        return cls(
            token_ids=_tensor(_token_ids(ordered), device),
            positions=_tensor(positions, device),
            prompt_tokens=_tensor(np.repeat(prompts, lengths), device),
            attention=_attention_batch(ordered, positions, block_size, device),
            samplers=tuple(sampler for chunk in chunks for sampler in chunk.samplers),
            logits_rows=_tensor(last_rows[sampled], device),
            sampler_rows=_tensor(sampler_rows, device) if sampler_counts.max() > 1 else None,
        )


def _attention_batch(
    chunks: list[Chunk], positions: Ints, block_size: int, device: torch.device
) -> AttentionBatch:
    """`chunks`: single-token ones first; `positions`: of all their tokens."""
    lengths = np.array([chunk.length for chunk in chunks])
    contexts = lengths + [chunk.sequence.computed_tokens for chunk in chunks]
    tables = _block_tables(chunks, block_size)
    blocks = tables[np.repeat(np.arange(len(chunks)), lengths), positions // block_size]
    return AttentionBatch(
        query_start=_tensor(np.concatenate(([0], np.cumsum(lengths))), device, torch.int32),
        context_lens=_tensor(contexts, device, torch.int32),
        block_tables=_tensor(tables, device, torch.int32),
        slots=_tensor(blocks * block_size + positions % block_size, device),
        num_decodes=int((lengths == 1).sum()),
        block_size=block_size,
        query_tokens=tuple(lengths.tolist()),
        context_tokens=tuple(contexts.tolist()),
    )


def _tensor(array: Ints, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.from_numpy(array).to(device=device, dtype=dtype)


def _token_ids(chunks: list[Chunk]) -> Ints:
    token_ids: list[int] = []
    for chunk in chunks:
        start = chunk.sequence.computed_tokens
        token_ids += chunk.sequence.token_ids[start : start + chunk.length]
    assert len(token_ids) == sum(chunk.length for chunk in chunks), (
        "a chunk reaches beyond its sequence's tokens"
    )
    return np.array(token_ids, dtype=np.int64)


def _block_tables(chunks: list[Chunk], block_size: int) -> Ints:
    """int64 [B, max_blocks], cut to what each context needs."""
    needed = [-(-(chunk.sequence.computed_tokens + chunk.length) // block_size) for chunk in chunks]
    tables = np.zeros((len(chunks), max(needed)), dtype=np.int64)
    for row, chunk, blocks in zip(tables, chunks, needed, strict=True):
        assert len(chunk.sequence.block_ids) >= blocks, "a chunk's blocks must be allocated"
        row[:blocks] = chunk.sequence.block_ids[:blocks]
    return tables
