"""Launches one engine step: chunks in, tokens on their way out."""

from __future__ import annotations

from collections.abc import Sequence as Sequenced

import torch
from torch import Tensor

from baton.engine.attention import AUTO, load_backend
from baton.engine.batch import Chunk
from baton.engine.decode_graphs import DecodeGraphs, Recorder
from baton.engine.kv_pool import KVPool
from baton.engine.model import CausalLM
from baton.engine.sampler import Drawn, Sampler
from baton.engine.step import StepInputs


class ModelRunner:
    """One model over one pool. Sequences are read, never changed."""

    def __init__(
        self,
        model: CausalLM,
        pool: KVPool,
        sampler: Sampler,
        device: str | torch.device = "cpu",
        attention_backend: str = AUTO,
    ) -> None:
        """Raises ConfigError where `attention_backend` is unknown or cannot serve here."""
        self._model = model
        self._pool = pool
        self._sampler = sampler
        self._device = torch.device(device)
        self._attention = load_backend(attention_backend, self._device, model.config.head_dim, pool.kv.dtype)
        self._graphs: DecodeGraphs | None = None

    @property
    def can_record(self) -> bool:
        return self._device.type == "cuda" and self._attention.is_recordable

    def record_decodes(self, max_model_tokens: int, recorder: Recorder) -> None:
        """From now on steps of single tokens are repetitions of recorded ones; contexts have at most
        `max_model_tokens` tokens."""
        with torch.inference_mode():
            self._graphs = DecodeGraphs(
                self._compute, self._device, self._pool.block_size, max_model_tokens, recorder
            )

    def launch(self, chunks: Sequenced[Chunk], being_drawn: Tensor | None = None) -> Drawn:
        """Has the device compute the K and V of all chunks (at least one) and draw one token a sampler, in the
        order of chunks and samplers, and waits for none of it. being_drawn: see `StepInputs.of`."""
        with torch.inference_mode():
            step = StepInputs.of(chunks, self._pool.block_size, self._device, being_drawn)
            return self._sampler.draw(self._logits(step, self._forward(step)), step.samplers)

    def _forward(self, step: StepInputs) -> Tensor:
        hidden = None if self._graphs is None else self._graphs.run(step)
        return self._compute(step) if hidden is None else hidden

    def _compute(self, step: StepInputs) -> Tensor:
        self._attention.begin_step(step.attention)
        return self._model.forward(
            step.token_ids, step.positions, step.prompt_tokens, self._pool.kv, self._attention
        )

    def _logits(self, step: StepInputs, hidden: Tensor) -> Tensor:
        """Logits, float32 [len(samplers), vocab_size]; each row is computed once, however many share it."""
        if not step.samplers:
            return hidden.new_empty((0, self._model.config.vocab_size), dtype=torch.float32)
        logits = self._model.logits(hidden[step.logits_rows])
        return logits if step.sampler_rows is None else logits[step.sampler_rows]
