"""CUDA graphs of decode steps: one launch instead of hundreds, for a ladder of batch sizes.

A recorded step reads its inputs where they were when it was recorded, so each step's are copied there first; the
rows between the batch and the next rung have no context, write nothing and are thrown away. All rungs share their
memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from baton.engine.attention.base import AttentionBatch
from baton.engine.step import StepInputs

RUNGS = (1, 2, 4, 8, *range(16, 129, 16), *range(160, 257, 32))
"""Batch sizes that are recorded; larger steps run without."""


class Recorder(Protocol):
    """Makes a step repeatable: returns what repeats it, and the tensor where each repetition leaves its result."""

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]: ...


class CudaRecorder:
    """By a CUDA graph; graphs never run at the same time, so all take their memory from one pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels are compiled and libraries set up outside of the recording
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = step()
        return graph.replay, result


@dataclass(frozen=True, slots=True, eq=False)
class _Rung:
    inputs: StepInputs
    replay: Callable[[], object]
    hidden: Tensor


class DecodeGraphs:
    """Steps in which every sequence has one new token. On the thread of the runner."""

    def __init__(
        self,
        forward: Callable[[StepInputs], Tensor],
        device: torch.device,
        block_size: int,
        max_model_tokens: int,
        recorder: Recorder,
        rungs: tuple[int, ...] = RUNGS,
    ) -> None:
        """Records all rungs, largest first, so that the smaller ones fit into its memory. `forward`: of a step's
        inputs, to hidden states [T, hidden_size], without a wait for the device."""
        self._rungs: dict[int, _Rung] = {}
        whole = _no_inputs(max(rungs), block_size, max_model_tokens, device)
        for size in sorted(rungs, reverse=True):
            inputs = _first(whole, size)
            replay, hidden = recorder(lambda inputs=inputs: forward(inputs))  # type: ignore[misc]
            self._rungs[size] = _Rung(inputs, replay, hidden)
        self._sizes = sorted(rungs)

    def run(self, step: StepInputs) -> Tensor | None:
        """The hidden states of `step`, valid until the next one; None where it is none of these or too large."""
        batch = len(step.token_ids)
        if step.attention.num_decodes != len(step.attention.query_tokens) or batch > self._sizes[-1]:
            return None
        rung = self._rungs[next(size for size in self._sizes if size >= batch)]
        _fill(rung.inputs, step, batch)
        rung.replay()
        return rung.hidden[:batch]


def _no_inputs(size: int, block_size: int, max_model_tokens: int, device: torch.device) -> StepInputs:
    """`size` rows without context."""

    def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    attention = AttentionBatch(
        query_start=torch.arange(size + 1, dtype=torch.int32, device=device),
        context_lens=zeros(size, dtype=torch.int32),
        block_tables=zeros(size, -(-max_model_tokens // block_size), dtype=torch.int32),
        slots=zeros(size) - 1,
        num_decodes=size,
        block_size=block_size,
        query_tokens=(1,) * size,
        context_tokens=(max_model_tokens,) * size,
    )
    return StepInputs(zeros(size), zeros(size), zeros(size), attention, (), zeros(0), None)


def _first(whole: StepInputs, size: int) -> StepInputs:
    """The first `size` rows, in the same memory."""
    attention = replace(
        whole.attention,
        query_start=whole.attention.query_start[: size + 1],
        context_lens=whole.attention.context_lens[:size],
        block_tables=whole.attention.block_tables[:size],
        slots=whole.attention.slots[:size],
        num_decodes=size,
        query_tokens=whole.attention.query_tokens[:size],
        context_tokens=whole.attention.context_tokens[:size],
    )
    return replace(
        whole,
        token_ids=whole.token_ids[:size],
        positions=whole.positions[:size],
        prompt_tokens=whole.prompt_tokens[:size],
        attention=attention,
    )


def _fill(inputs: StepInputs, step: StepInputs, batch: int) -> None:
    """Copies `step` over the first rows and makes the others rows without context."""
    for target, source in (
        (inputs.token_ids, step.token_ids),
        (inputs.positions, step.positions),
        (inputs.prompt_tokens, step.prompt_tokens),
        (inputs.attention.context_lens, step.attention.context_lens),
        (inputs.attention.slots, step.attention.slots),
    ):
        target[:batch].copy_(source)
    inputs.attention.context_lens[batch:] = 0
    inputs.attention.slots[batch:] = -1
    tables = step.attention.block_tables
    inputs.attention.block_tables[:batch, : tables.shape[1]].copy_(tables)
