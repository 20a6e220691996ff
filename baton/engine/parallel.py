"""Tensor parallelism: one process a rank, each with a part of every layer (https://arxiv.org/abs/1909.08053).

Queries, gate and up projections are split by columns, so a rank holds whole heads and needs nobody to attend;
output and down projections are split by rows, and their partial results are added up over all ranks, twice a
layer. With more ranks than KV heads neighbours hold the same head. Embedding, norms and head are not split: all
ranks embed alike, and rank 0 alone computes logits and samples, exactly as without parallelism.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeVar

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from baton.engine.architecture import Architecture
from baton.engine.chunk_rows import ChunkRows
from baton.errors import ConfigError, WorkerFailed

Config = TypeVar("Config", bound=Architecture)

COLLECTIVE_TIMEOUT_S = 60.0
"""A rank that does not come to a sum within this time is taken for dead."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `rank` of `degree` of a model."""

    degree: int = 1
    rank: int = 0

    def config(self, whole: Config) -> Config:
        """`whole` with the heads and the width of this rank. Raises ConfigError where they do not divide."""
        self._require_dividing("num_attention_heads", whole.num_heads)
        self._require_dividing("intermediate_size", whole.intermediate_size)
        if self.degree % whole.num_kv_heads:
            self._require_dividing("num_key_value_heads", whole.num_kv_heads)
        return dataclasses.replace(
            whole,
            num_heads=whole.num_heads // self.degree,
            num_kv_heads=max(1, whole.num_kv_heads // self.degree),
            intermediate_size=whole.intermediate_size // self.degree,
        )

    def _require_dividing(self, name: str, value: int) -> None:
        if value % self.degree:
            raise ConfigError(f"tp {self.degree} does not divide the model's {name}, {value}", field="tp")

    def query_rows(self, whole: Architecture) -> range:
        return self._part(whole.num_heads * whole.head_dim)

    def kv_rows(self, whole: Architecture) -> range:
        """Rows of the key and of the value projection: of the KV heads that this rank's queries read."""
        if self.degree > whole.num_kv_heads:
            head = self.rank * whole.num_kv_heads // self.degree
            return range(head * whole.head_dim, (head + 1) * whole.head_dim)
        return self._part(whole.num_kv_heads * whole.head_dim)

    def mlp_rows(self, whole: Architecture) -> range:
        return self._part(whole.intermediate_size)

    def device(self, first: str) -> str:
        """The device of this rank where rank 0 has `first`: the next one of CUDA for each rank."""
        kind, _, number = first.partition(":")
        return first if kind != "cuda" or self.degree == 1 else f"cuda:{int(number or 0) + self.rank}"

    def _part(self, size: int) -> range:
        return range(size * self.rank // self.degree, size * (self.rank + 1) // self.degree)


WHOLE = Shard()


class Collective:
    """The ranks' sums: gloo between CPUs, NCCL between GPUs. Every rank has to make the same calls."""

    def __init__(self, shard: Shard, meeting_point: Path, device: str) -> None:
        """Blocks until all ranks are here. meeting_point: a file that all ranks, and nobody else, can write.

        Raises torch's DistError where they do not come.
        """
        # The ranks of a worker share a host: nobody outside has to reach them.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if device.startswith("cuda") else "gloo",
            init_method=f"file://{meeting_point}",
            rank=shard.rank,
            world_size=shard.degree,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )

    def add_up(self, partial: Tensor) -> None:
        """Replaces `partial` by the sum over all ranks, the same bits on each."""
        try:
            dist.all_reduce(partial)
        except RuntimeError as error:
            raise WorkerFailed(f"the ranks of this worker cannot add up: {error}") from error

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class SummedLinear:
    """y = sum over the ranks of x W^T, + b, with W [out, in of this rank] and b [out] or None."""

    weight: Tensor
    bias: Tensor | None
    collective: Collective

    def __call__(self, x: Tensor) -> Tensor:
        total = F.linear(x, self.weight)
        self.collective.add_up(total)
        return total if self.bias is None else total.add_(self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return self(x).add_(residual)


class Followers(Protocol):
    """The other ranks, as rank 0's engine sees them. What is called is carried out in order, beside rank 0's own
    work."""

    def compute(self, rows: Sequence[ChunkRows]) -> None: ...

    def copy_block(self, source: int, target: int) -> None: ...

    def clear_tail(self, block_id: int, tokens: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Parallel:
    """What rank 0's engine needs of its group."""

    shard: Shard
    collective: Collective
    followers: Followers


def part_of(tensor: Tensor, rows: range, dim: int) -> Tensor:
    """The slice `rows` of a weight along `dim`; no copy."""
    return tensor.narrow(dim, rows.start, len(rows))
