"""Recorded decode steps: whatever the batch, the rows are those of a step that was not recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hand_driven import HandDriven
from model_folders import prompt_ids
from torch import Tensor

from baton.engine.attention import load_backend
from baton.engine.batch import Chunk
from baton.engine.decode_graphs import DecodeGraphs
from baton.engine.step import StepInputs

CPU = torch.device("cpu")
MAX_TOKENS = 160

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU Triton does not run on the CPU")


def again(step: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
    """What a CUDA graph does, on a CPU: the same call over the same memory, its result in the same place."""
    result = step().clone()
    return lambda: result.copy_(step()), result


class Recorded:
    """Decode steps on Triton's kernels that can be recorded, over prompts that another backend has computed."""

    def __init__(self, folder: Path) -> None:
        self.engine = HandDriven(folder)
        self.pool = self.engine.pool
        self._attention = load_backend("triton", CPU, self.engine.config.head_dim, self.pool.kv.dtype)
        self.graphs = DecodeGraphs(self.forward, CPU, self.pool.block_size, MAX_TOKENS, again, (1, 2, 4))

    def forward(self, step: StepInputs) -> Tensor:
        with torch.inference_mode():
            self._attention.begin_step(step.attention)
            return self.engine.model.forward(
                step.token_ids, step.positions, step.prompt_tokens, self.pool.kv, self._attention
            )

    def inputs(self, prompts: list[int]) -> StepInputs:
        """A decode step of sequences whose prompts have so many tokens."""
        sequences = [self.engine.sequence(prompt_ids(tokens, seed=tokens)) for tokens in prompts]
        for sequence in sequences:
            self.engine.prefill(sequence, 64)
        return StepInputs.of([Chunk(s, 1, (s,)) for s in sequences], self.pool.block_size, CPU)

    def others(self, step: StepInputs) -> Tensor:
        """A copy of all blocks that `step` does not write."""
        own = {slot // self.pool.block_size for slot in step.attention.slots.tolist()}
        return self.pool.kv[[block for block in range(self.pool.num_blocks) if block not in own]]


@pytest.fixture
def recorded(model_folder: Callable[[str], Path]) -> Recorded:
    return Recorded(model_folder("llama"))


def test_a_recorded_step_gives_the_rows_of_one_that_was_not(recorded: Recorded) -> None:
    for prompts in ([70, 3, 33], [18], [5, 80, 17, 40]):
        step = recorded.inputs(prompts)
        expected = recorded.forward(step).clone()
        actual = recorded.graphs.run(step)
        assert actual is not None
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_rows_of_an_earlier_larger_step_write_nothing_later(recorded: Recorded) -> None:
    recorded.graphs.run(recorded.inputs([40, 41, 42]))
    recorded.pool.kv[:, :, :, -1] = 7.0
    step = recorded.inputs([30])
    before = recorded.others(step)
    recorded.graphs.run(step)
    assert torch.equal(recorded.others(step), before)


def test_prompts_and_larger_batches_are_not_recorded(recorded: Recorded) -> None:
    assert recorded.graphs.run(recorded.inputs([20, 21, 22, 23, 24])) is None
    sequence = recorded.engine.sequence(prompt_ids(20))
    prompt = StepInputs.of([Chunk(sequence, 20, (sequence,))], recorded.pool.block_size, CPU)
    assert recorded.graphs.run(prompt) is None
