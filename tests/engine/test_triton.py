"""Triton's kernels compute what plain torch does; on a CPU under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from baton.engine import kernels
from baton.engine.attention import load_backend
from baton.engine.attention.reference import ReferenceAttention
from baton.engine.attention.triton import TritonAttention
from baton.engine.batch import Chunk
from baton.engine.sequence import Sequence
from baton.engine.step import StepInputs
from baton.engine.triton import pointwise
from baton.errors import ConfigError
from baton.request import SamplingParams

COMPILER = Path(__file__).parents[1] / "compile_for_gpu.py"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
RAGGED = ((66, 1), (0, 1), (0, 19), (33, 9))
"""Tokens in the pool and new ones: single tokens, a fresh prompt and a prompt behind a prefix."""
SHAPES = [
    # group, head_dim, block_size, dtype, window
    (1, 64, 16, torch.float32, None),
    (2, 128, 32, torch.float32, 40),
    (3, 64, 64, torch.bfloat16, None),
    (4, 128, 16, torch.bfloat16, 17),
    (7, 64, 32, torch.float16, 1),
    (8, 128, 64, torch.float16, None),
]


def step_inputs(block_size: int, seed: int) -> tuple[StepInputs, int]:
    """A ragged step over shuffled blocks, and how many blocks there are."""
    needed = [-(-(past + new) // block_size) for past, new in RAGGED]
    free = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(seed)).tolist()
    chunks = []
    for (past, new), count in zip(RAGGED, needed, strict=True):
        tokens = past + new
        blocks = [free.pop() for _ in range(count)]
        sequence = Sequence("r", 0, SamplingParams(max_tokens=1), b"", [0] * tokens, tokens, blocks, past)
        chunks.append(Chunk(sequence, new))
    return StepInputs.of(chunks, block_size, DEVICE), sum(needed) + 3


@pytest.mark.parametrize(("group", "head_dim", "block_size", "dtype", "window"), SHAPES)
def test_rotation_write_and_attention_are_those_of_the_reference(
    group: int, head_dim: int, block_size: int, dtype: torch.dtype, window: int | None
) -> None:
    torch.manual_seed(group)
    kv_heads = 2
    step, blocks = step_inputs(block_size, group)
    tokens = len(step.token_ids)
    heads = torch.randn(tokens, (group + 2) * kv_heads, head_dim, device=DEVICE).to(dtype)
    angle = torch.rand(tokens, 1, head_dim // 2, device=DEVICE) * 6
    angles = angle.cos().to(dtype), angle.sin().to(dtype)
    pool = torch.randn(blocks, 2, 2, block_size, kv_heads, head_dim, device=DEVICE).to(dtype)
    results = []
    for backend in (ReferenceAttention(), TritonAttention()):
        kv = pool.clone()
        backend.begin_step(step.attention)
        results.append((backend.rotate_and_attend(heads.clone(), *angles, kv, 1, window), kv))
    (expected, expected_kv), (actual, kv) = results
    torch.testing.assert_close(kv, expected_kv, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    torch.testing.assert_close(actual, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def test_a_row_without_context_is_zeros_and_writes_nothing() -> None:
    step, blocks = step_inputs(16, seed=1)
    batch = step.attention
    batch.context_lens[0], batch.slots[0] = 0, -1
    kv = torch.full((blocks, 1, 2, 16, 1, 64), 3.0, device=DEVICE)
    heads = torch.ones(len(step.token_ids), 3, 64, device=DEVICE)
    backend = TritonAttention()
    backend.begin_step(batch)
    output = backend.attend(heads[:, :1], heads[:, 1:2], heads[:, 2:], kv, 0, None)
    assert not output[0].any()
    assert (kv == 1).sum() == 2 * 64 * (len(step.token_ids) - 1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(3, 576), (2, 4096), (5, 3, 64)])
def test_norms_are_alike(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    wide = torch.randn(*shape[:-1], shape[-1] + 8).to(dtype)
    x = wide[..., : shape[-1]] if len(shape) == 2 else torch.randn(shape).to(dtype)
    weight = torch.randn(shape[-1]).to(dtype)
    actual = pointwise.rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5).cpu()
    expected = kernels.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(actual, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_gates_are_alike(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 2 * 1536).to(dtype)
    actual = pointwise.silu_times(gate_up.to(DEVICE)).cpu()
    expected: Tensor = kernels.silu_times(gate_up)
    torch.testing.assert_close(actual, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def test_without_interpreter_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match="'triton' does not run on cpu"):
        load_backend("triton", torch.device("cpu"), 64, torch.float32)


@pytest.mark.soak
@pytest.mark.parametrize("capability", [80, 90], ids=["Ampere", "Hopper"])
def test_every_kernel_compiles_for_a_gpu(capability: int, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command: list[str | Path] = [sys.executable, "-P", COMPILER, str(capability)]
    done = subprocess.run(
        command,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
