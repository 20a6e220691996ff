"""All layers in one native call compute what they compute one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import model_folders
import pytest
import torch
from hand_driven import HandDriven
from torch import Tensor
from transformers import AutoModelForCausalLM

from baton.engine import kernels
from baton.engine.attention.base import AttentionBackend, AttentionBatch
from baton.engine.attention.cpu import CpuAttention
from baton.engine.batch import Chunk
from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.engine.sequence import Sequence
from baton.engine.step import StepInputs
from baton.request import SamplingParams

BLOCK_SIZE = 4

pytestmark = pytest.mark.skipif(
    not kernels.are_built() or not kernels.native.has_bfloat16_products(),
    reason="this processor has no AVX512-BF16",
)


class SomeBackend(AttentionBackend):
    """The same kernels behind another type, with which a model goes through its layers in Python."""

    name = "some"

    def __init__(self) -> None:
        self._cpu = CpuAttention()

    @classmethod
    def hindrance(cls, device: torch.device, head_dim: int, dtype: torch.dtype) -> str | None:
        return CpuAttention.hindrance(device, head_dim, dtype)

    def begin_step(self, batch: AttentionBatch) -> None:
        self._cpu.begin_step(batch)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, kv: Tensor, layer: int, sliding_window: int | None
    ) -> Tensor:
        return self._cpu.attend(query, key, value, kv, layer, sliding_window)


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def compute(folder: Path, attention: AttentionBackend) -> list[Tensor]:
    """Output of the last layer for each of `mixed_steps`, and then the pool's memory."""
    config = ModelConfig.from_folder(folder)
    model = CausalLM.load(config)
    kv = torch.zeros(128, config.num_layers, 2, BLOCK_SIZE, config.num_kv_heads, config.head_dim).bfloat16()
    outputs = []
    for chunks in mixed_steps():
        step = StepInputs.of(chunks, BLOCK_SIZE, torch.device("cpu"))
        attention.begin_step(step.attention)
        with torch.inference_mode():
            ids = (step.token_ids, step.positions, step.prompt_tokens)
            outputs.append(model.forward(*ids, kv, attention))
        for chunk in chunks:
            chunk.sequence.computed_tokens += chunk.length
    return [*outputs, kv]


def mixed_steps() -> list[list[Chunk]]:
    """Prompts of 90 and 33 tokens; then a token of each and a third prompt; then one each."""
    blocks = iter(torch.randperm(128, generator=torch.Generator().manual_seed(0)).tolist())
    sequences = []
    for tokens in (90, 33, 21):
        ids = model_folders.prompt_ids(tokens + 2)
        own = [next(blocks) for _ in range(-(-len(ids) // BLOCK_SIZE))]
        sequences.append(Sequence("r", 0, SamplingParams(max_tokens=4), b"", ids, tokens, own))
    long, short, late = sequences
    return [
        [Chunk(long, 64), Chunk(short, 33)],
        [Chunk(short, 1), Chunk(long, 26), Chunk(late, 21)],
        [Chunk(long, 1), Chunk(short, 1), Chunk(late, 1)],
    ]


@pytest.mark.parametrize("name", model_folders.PACKABLE)
@pytest.mark.usefixtures("two_threads")
def test_layers_in_one_call_equal_layers_one_by_one(tmp_path: Path, name: str) -> None:
    folder = model_folders.make_folder(name, tmp_path, torch.bfloat16)
    for actual, expected in zip(compute(folder, CpuAttention()), compute(folder, SomeBackend()), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", model_folders.PACKABLE)
def test_packed_layers_stay_close_to_transformers(tmp_path: Path, name: str) -> None:
    folder = model_folders.make_folder(name, tmp_path, torch.bfloat16)
    prompt = model_folders.prompt_ids(200)
    engine = HandDriven(folder)
    logits = engine.logits(engine.sequence(prompt), 64)
    exact, rounded = (_oracle_logits(folder, prompt, dtype) for dtype in (torch.float32, torch.bfloat16))
    noise = (rounded - exact).square().mean().sqrt()
    assert (logits - exact).square().mean().sqrt() < 1.25 * noise


def _oracle_logits(folder: Path, prompt: list[int], dtype: torch.dtype) -> Tensor:
    """float32 [prompt tokens, vocab_size]."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([prompt])).logits[0]
    return logits.float()
