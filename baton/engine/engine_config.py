"""What an engine is built from: completed and checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch

from baton.engine.attention import choose_backend
from baton.engine.device_name import require_device_name
from baton.engine.gpu import Gpu
from baton.engine.kv_pool import KVPool
from baton.engine.memory import available_bytes
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import Shard
from baton.engine.weights import weight_count
from baton.errors import ConfigError

CPU_KV_MEMORY_SHARE = 0.1
GPU_KV_MEMORY_SHARE = 0.9
"""Share of the memory free at start, on a GPU once the weights are in, that the KV pool takes where no number of
blocks is given."""

MAX_DEFAULT_CPU_KV_BYTES = 4 << 30
MIN_KV_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from.

    dtype: "auto" (the folder's own), "float32", "bfloat16" or "float16". block_size: tokens a block.
    kv_blocks: None sizes the pool from free memory. max_model_tokens: prompt and output together; None takes
    the model's own. threads: of torch's kernels, None leaves torch's choice. tp: ranks, each a process, that
    share the model (see `parallel`). overlap: whether a scheduler should launch a step before the one in flight has
    landed; None does where steps are computed beside the host, on one GPU.
    """

    model: Path
    dtype: str = "auto"
    device: str = "cpu"
    block_size: int = 16
    kv_blocks: int | None = None
    max_model_tokens: int | None = None
    attention: str = "auto"
    threads: int | None = None
    tp: int = 1
    overlap: bool | None = None


def complete(config: EngineConfig) -> EngineConfig:
    """`config` with the number of blocks, for all ranks the same. Raises ModelFolderError and ConfigError for what
    cannot be served, before anything is loaded."""
    _check_device(config.device)
    model = ModelConfig.from_folder(config.model, config.dtype, config.max_model_tokens)
    shard = Shard(config.tp).config(model)
    _check_device(Shard(config.tp, config.tp - 1).device(config.device))
    choose_backend(config.attention, torch.device(config.device), model.head_dim, model.dtype)
    if config.device.startswith("cuda"):
        _check_gpus(config, shard)
    num_blocks = config.kv_blocks
    if num_blocks is None:
        pool_bytes = _default_kv_bytes(config, shard)
        num_blocks = pool_bytes // shard.kv_block_bytes(config.block_size)
    if num_blocks < MIN_KV_BLOCKS:
        raise ConfigError(
            f"kv_blocks is {num_blocks}, at least {MIN_KV_BLOCKS} are needed", field="kv_blocks"
        )
    return dataclasses.replace(config, kv_blocks=num_blocks)


def make_pool(config: EngineConfig, model: ModelConfig, device: str) -> KVPool:
    """The pool of one rank; `config` is complete, `model` has the rank's own heads."""
    assert config.kv_blocks is not None, "the configuration is not complete"
    return KVPool(
        config.kv_blocks,
        config.block_size,
        model.num_layers,
        model.num_kv_heads,
        model.head_dim,
        model.dtype,
        device,
    )


def _check_device(device: str) -> None:
    """Raises ConfigError for a device that is not there, before anything is loaded."""
    require_device_name(device)
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} of CUDA",
            field="device",
        )


def _check_gpus(config: EngineConfig, shard: ModelConfig) -> None:
    """Raises ConfigError for a GPU that cannot hold or compute its rank's part of the model."""
    kv_bytes = (config.kv_blocks or MIN_KV_BLOCKS) * shard.kv_block_bytes(config.block_size)
    for rank in range(config.tp):
        gpu = Gpu.at(Shard(config.tp, rank).device(config.device))
        gpu.require_new_enough()
        gpu.require_room(_weight_bytes(shard), kv_bytes)


def _weight_bytes(shard: ModelConfig) -> int:
    return weight_count(shard) * shard.dtype.itemsize


def _default_kv_bytes(config: EngineConfig, shard: ModelConfig) -> int:
    """Of one rank. On a CPU all ranks share the memory."""
    available = available_bytes(torch.device(config.device))
    if config.device.startswith("cuda"):
        return int((available - _weight_bytes(shard)) * GPU_KV_MEMORY_SHARE)
    return min(MAX_DEFAULT_CPU_KV_BYTES, int(available * CPU_KV_MEMORY_SHARE)) // config.tp
