"""What a rank other than 0 runs: its part of every layer and of every block, step by step as rank 0 says."""

from __future__ import annotations

from collections.abc import Sequence as Sequenced

import torch

from baton.engine.attention import load_backend
from baton.engine.chunk_rows import ChunkRows
from baton.engine.engine_config import EngineConfig, make_pool
from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import Collective, Shard
from baton.engine.step import StepInputs


class RankEngine:
    """Decides nothing, so it needs no sampler and no block table: block ids are those of rank 0. Implements
    `Followers`."""

    def __init__(self, config: EngineConfig, shard: Shard, collective: Collective) -> None:
        """config: as completed by rank 0. Raises ModelFolderError and ConfigError."""
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.model = ModelConfig.from_folder(config.model, config.dtype, config.max_model_tokens)
        device = shard.device(config.device)
        self._device = torch.device(device)
        self._causal_lm = CausalLM.load(self.model, device, shard, collective)
        self.pool = make_pool(config, shard.config(self.model), device)
        self._attention = load_backend(config.attention, self._device, self.model.head_dim, self.model.dtype)

    def compute(self, rows: Sequenced[ChunkRows]) -> None:
        with torch.inference_mode():
            step = StepInputs.of_rows(rows, (), self.pool.block_size, self._device)
            self._attention.begin_step(step.attention)
            self._causal_lm.forward(
                step.token_ids, step.positions, step.prompt_tokens, self.pool.kv, self._attention
            )

    def copy_block(self, source: int, target: int) -> None:
        self.pool.copy_block(source, target)

    def clear_tail(self, block_id: int, tokens: int) -> None:
        self.pool.clear_tail(block_id, tokens)

    def close(self) -> None:
        self.pool.close()
