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
from baton.engine.chunk_rows import ChunkRows
from baton.engine.device_copy import upload
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
    def of(
        cls,
        chunks: Sequenced[Chunk],
        block_size: int,
        device: torch.device,
        being_drawn: Tensor | None = None,
    ) -> StepInputs:
        """The inputs of `chunks` (at least one) on `device`. being_drawn: int64, on `device`, the tokens of the
        step in flight, in place of those whose ids are awaited."""
        rows = [ChunkRows.of(chunk, block_size) for chunk in chunks]
        samplers = tuple(sampler for chunk in chunks for sampler in chunk.samplers)
        return cls.of_rows(rows, samplers, block_size, device, being_drawn)

    @classmethod
    def of_rows(
        cls,
        rows: Sequenced[ChunkRows],
        samplers: tuple[Sequence, ...],
        block_size: int,
        device: torch.device,
        being_drawn: Tensor | None = None,
    ) -> StepInputs:
        """The same from what is left of chunks without their sequences."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].token_ids) > 1)
        ordered = [rows[index] for index in order]
        lengths = np.array([len(row.token_ids) for row in ordered])
        starts = np.array([row.start for row in ordered])
        prompts = np.array([row.prompt_tokens for row in ordered])
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) + np.repeat(starts + lengths - ends, lengths)
        last_rows = np.empty_like(ends)
        last_rows[order] = ends - 1
        sampler_counts = np.array([row.samplers for row in rows])
        sampled = sampler_counts > 0
        sampler_rows = np.repeat(np.arange(sampled.sum()), sampler_counts[sampled])
        token_ids = np.array([token_id for row in ordered for token_id in row.token_ids], dtype=np.int64)
        return cls(
            token_ids=_known(token_ids, being_drawn, device),
            positions=_tensor(positions, device),
            prompt_tokens=_tensor(np.repeat(prompts, lengths), device),
            attention=_attention_batch(ordered, positions, block_size, device),
            samplers=samplers,
            logits_rows=_tensor(last_rows[sampled], device),
            sampler_rows=_tensor(sampler_rows, device) if sampler_counts.max() > 1 else None,
        )


def _known(token_ids: Ints, being_drawn: Tensor | None, device: torch.device) -> Tensor:
    """`token_ids` with the tokens of the step in flight in place of those that are awaited."""
    ids = _tensor(token_ids, device)
    if not (token_ids < 0).any():
        return ids
    assert being_drawn is not None, "tokens are awaited of a step that is not in flight"
    return torch.where(ids < 0, being_drawn[ids.bitwise_not().clamp_(min=0)], ids)


def _attention_batch(
    rows: list[ChunkRows], positions: Ints, block_size: int, device: torch.device
) -> AttentionBatch:
    """`rows`: single-token ones first; `positions`: of all their tokens."""
    lengths = np.array([len(row.token_ids) for row in rows])
    contexts = lengths + [row.start for row in rows]
    tables = _block_tables(rows)
    blocks = tables[np.repeat(np.arange(len(rows)), lengths), positions // block_size]
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
    return upload(torch.from_numpy(array).to(dtype), device)


def _block_tables(rows: list[ChunkRows]) -> Ints:
    """int64 [B, max_blocks], cut to what each context needs."""
    tables = np.zeros((len(rows), max(len(row.block_ids) for row in rows)), dtype=np.int64)
    for table, row in zip(tables, rows, strict=True):
        table[: len(row.block_ids)] = row.block_ids
    return tables
