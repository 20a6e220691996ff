"""Every attention backend computes what the textbook formula says, over paged memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.engine.attention import load_backend
from baton.engine.attention.base import AttentionBackend
from baton.engine.batch import Chunk
from baton.engine.sequence import Sequence
from baton.engine.step import StepInputs
from baton.errors import ConfigError
from baton.request import SamplingParams

BLOCK_SIZE = 4
NUM_BLOCKS = 128
HEAD_DIM = 8
ON_A_CPU = {"cpu": 50, "reference": 50, "triton": 12}
"""Backends, and examples for each: Triton's interpreter is slow, and `test_triton.py` has its grid."""
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
LAYERS = 2


@dataclass(frozen=True)
class Case:
    """lengths: (tokens in the pool, new tokens) of each sequence."""

    lengths: list[tuple[int, int]]
    num_kv_heads: int
    group: int
    window: int | None
    seed: int
    head_dim: int = HEAD_DIM
    dtype: torch.dtype = torch.float32


@st.composite
def cases(draw: st.DrawFn) -> Case:
    new_tokens = st.one_of(st.just(1), st.integers(1, 19))
    return Case(
        lengths=draw(st.lists(st.tuples(st.integers(0, 40), new_tokens), min_size=1, max_size=5)),
        num_kv_heads=draw(st.sampled_from([1, 2, 3])),
        group=draw(st.sampled_from([1, 2, 4])),
        window=draw(st.none() | st.integers(1, 50)),
        seed=draw(st.integers(0, 2**16)),
        head_dim=draw(st.sampled_from([HEAD_DIM, 24, 64, 128])),
        dtype=draw(st.sampled_from(list(TOLERANCES))),
    )


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def load(name: str, head_dim: int = HEAD_DIM) -> AttentionBackend:
    return load_backend(name, torch.device("cpu"), head_dim, torch.float32)


def textbook(query: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, one query at a time, in float64. query: [n, H, D], the newest of the tokens
    of keys and values [c, KV, D]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = keys.double(), values.double()
    rows = []
    for row, heads in enumerate(query.double()):
        end = len(keys) - len(query) + row + 1
        start = max(0, end - window) if window else 0
        for head, vector in enumerate(heads):
            scores = keys[start:end, head // group] @ vector / query.shape[-1] ** 0.5
            rows.append(scores.softmax(0) @ values[start:end, head // group])
    return torch.stack(rows).view_as(query)


def attend_in_pool(backend: AttentionBackend, case: Case) -> tuple[Tensor, Tensor]:
    """The backend's output and the textbook's for one layer. All memory that belongs to no token is NaN, and
    so is what the new tokens overwrite."""
    generator = torch.Generator().manual_seed(case.seed)
    blocks_needed = sum(-(-(past + new) // BLOCK_SIZE) for past, new in case.lengths)
    shape = (NUM_BLOCKS + blocks_needed, LAYERS, 2, BLOCK_SIZE, case.num_kv_heads, case.head_dim)
    kv = torch.full(shape, torch.nan, dtype=case.dtype)
    free = torch.randperm(len(kv), generator=generator).tolist()
    layer = LAYERS - 1
    expected, inputs = [], []
    chunks = []
    for past, new in case.lengths:
        tokens = past + new
        blocks = [free.pop() for _ in range(-(-tokens // BLOCK_SIZE))]
        sequence = Sequence("r", 0, SamplingParams(max_tokens=1), b"", [0] * tokens, tokens, blocks, past)
        chunks.append(Chunk(sequence, new))
        pair = torch.randn(2, tokens, case.num_kv_heads, case.head_dim, generator=generator).to(case.dtype)
        query = torch.randn(new, case.num_kv_heads * case.group, case.head_dim, generator=generator).to(
            case.dtype
        )
        for position in range(past):
            kv[blocks[position // BLOCK_SIZE], layer, :, position % BLOCK_SIZE] = pair[:, position]
        expected.append(textbook(query, pair[0], pair[1], case.window))
        inputs.append((query, pair[0, past:], pair[1, past:]))
    order = sorted(range(len(chunks)), key=lambda index: chunks[index].length > 1)
    query, key, value = (torch.cat([inputs[index][part] for index in order]) for part in range(3))
    backend.begin_step(StepInputs.of(chunks, BLOCK_SIZE, torch.device("cpu")).attention)
    actual = backend.attend(query, key, value, kv, layer, case.window)
    assert kv[:, 0].isnan().all()
    return actual, torch.cat([expected[index] for index in order]).to(case.dtype)


@pytest.mark.parametrize(("name", "examples"), ON_A_CPU.items())
def test_attention_over_shuffled_blocks_equals_the_formula(name: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(case=cases())
    def equals_the_formula(case: Case) -> None:
        actual, expected = attend_in_pool(load(name), case)
        torch.testing.assert_close(actual, expected, atol=TOLERANCES[case.dtype], rtol=0)

    equals_the_formula()


@pytest.mark.parametrize("name", ON_A_CPU)
def test_layers_of_one_step_may_have_different_windows(name: str) -> None:
    backend = load(name)
    for window in (None, 3, None, 17):
        actual, expected = attend_in_pool(backend, Case([(30, 1), (0, 9), (12, 5)], 2, 2, window, seed=7))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ON_A_CPU)
@pytest.mark.parametrize("window", [None, 1500])
def test_the_keys_of_one_long_context_are_shared_out_among_threads(
    name: str, window: int | None, two_threads: None
) -> None:
    case = Case([(2100, 1)], 1, 3, window, seed=5, head_dim=24)
    actual, expected = attend_in_pool(load(name), case)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_auto_is_native_code_for_heads_that_it_takes() -> None:
    assert load("auto", 256).name == "cpu", "installed without a C compiler: the native way is untested"
    assert load("auto", 320).name == "reference"


def test_a_backend_that_cannot_serve_the_model_says_why() -> None:
    with pytest.raises(ConfigError, match="'cpu' takes heads of at most 256 dimensions, not 320"):
        load("cpu", 320)
    with pytest.raises(ConfigError, match="'cpu' does not run on cuda:1"):
        load_backend("cpu", torch.device("cuda:1"), 64, torch.float32)


def test_an_unknown_backend_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'flash9' is unknown \(choices: .*reference"):
        load("flash9")
