"""A model runner driven by hand: block tables are drawn at random, chunks are what the test says."""

from __future__ import annotations

import random
from collections.abc import Sequence as Sequenced
from pathlib import Path

import torch
from torch import Tensor

from baton.engine.attention import AUTO, load_backend
from baton.engine.batch import Chunk
from baton.engine.kv_pool import KVPool
from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.engine.runner import ModelRunner
from baton.engine.sampler import Sampler
from baton.engine.sequence import Sequence
from baton.engine.step import StepInputs
from baton.request import SamplingParams, Token

TOP_LOGPROBS = 5


class HandDriven:
    """`num_blocks` blocks, handed out in random order and never taken back."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "auto",
        block_size: int = 16,
        num_blocks: int = 512,
        attention: str = AUTO,
    ) -> None:
        torch.set_num_threads(1)
        self.config = ModelConfig.from_folder(folder, dtype)
        self.model = CausalLM.load(self.config)
        self.pool = KVPool(
            num_blocks,
            block_size,
            self.config.num_layers,
            self.config.num_kv_heads,
            self.config.head_dim,
            self.config.dtype,
        )
        sampler = Sampler(self.config.vocab_size, self.config.eos_token_ids)
        self.runner = ModelRunner(self.model, self.pool, sampler, attention_backend=attention)
        self._attention = attention
        self._free = random.Random(0).sample(range(num_blocks), num_blocks)

    def sequence(self, prompt: Sequenced[int], *, max_tokens: int = 64) -> Sequence:
        sampling = SamplingParams(
            max_tokens=max_tokens, temperature=0.0, logprobs=TOP_LOGPROBS, ignore_eos=True
        )
        sequence = Sequence("request", 0, sampling, b"", list(prompt), len(prompt))
        blocks = -(-(len(prompt) + max_tokens) // self.pool.block_size)
        sequence.block_ids = [self._free.pop() for _ in range(blocks)]
        return sequence

    def step(self, chunks: Sequenced[Chunk]) -> list[Token]:
        """Runs one step and appends what it draws to the samplers."""
        samplers = [sampler for chunk in chunks for sampler in chunk.samplers]
        tokens = [token for _, token in self.runner.launch(chunks).read(samplers)]
        for chunk in chunks:
            chunk.sequence.computed_tokens += chunk.length
        for sampler, token in zip(samplers, tokens, strict=True):
            assert token.index == sampler.output_tokens
            sampler.token_ids.append(token.token_id)
        return tokens

    def prefill(self, sequence: Sequence, chunk_tokens: int) -> Token:
        """Computes the prompt in chunks of at most `chunk_tokens` and draws the first token."""
        while sequence.prompt_tokens - sequence.computed_tokens > chunk_tokens:
            self.step([Chunk(sequence, chunk_tokens)])
        rest = sequence.prompt_tokens - sequence.computed_tokens
        return self.step([Chunk(sequence, rest, (sequence,))])[0]

    def decode(self, sequences: Sequenced[Sequence]) -> list[Token]:
        """One decode step of all `sequences`."""
        return self.step([Chunk(sequence, 1, (sequence,)) for sequence in sequences])

    def logits(self, sequence: Sequence, chunk_tokens: int) -> Tensor:
        """Logits, float32 [prompt_tokens, vocab_size], of every position of the prompt."""
        attention = load_backend(
            self._attention, torch.device("cpu"), self.config.head_dim, self.config.dtype
        )
        rows = []
        with torch.inference_mode():
            while sequence.computed_tokens < sequence.prompt_tokens:
                length = min(chunk_tokens, sequence.prompt_tokens - sequence.computed_tokens)
                step = StepInputs.of([Chunk(sequence, length)], self.pool.block_size, torch.device("cpu"))
                attention.begin_step(step.attention)
                hidden = self.model.forward(
                    step.token_ids, step.positions, step.prompt_tokens, self.pool.kv, attention
                )
                rows.append(self.model.logits(hidden))
                sequence.computed_tokens += length
        return torch.cat(rows)
