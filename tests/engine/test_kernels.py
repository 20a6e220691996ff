"""Native code and plain torch compute the same between the matrix products and in them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine import kernels, packed_linear
from baton.engine.linear import GatedLinear, Linear
from baton.engine.weight_memory import PIECE_BYTES, WeightMemory

EPSILON = 1e-5
MEMORY = WeightMemory()
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

needs_bfloat16_products = pytest.mark.skipif(
    not kernels.are_built() or not kernels.native.has_bfloat16_products(),
    reason="this processor has no AVX512-BF16",
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    assert kernels.are_built(), "installed without a C compiler: the native way is untested"
    return lambda: monkeypatch.setattr(kernels, "native", None)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("shape", [(1, 576), (3, 40), (50, 2048), (7, 3, 64), (600, 5, 24)])
def test_norms_are_alike(
    shape: tuple[int, ...], dtype: torch.dtype, without_native: Callable[[], None]
) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    result = kernels.rms_norm(x, weight, EPSILON)
    in_place = kernels.rms_norm(x.clone(), weight, EPSILON, torch.empty_like(x))
    without_native()
    expected = kernels.rms_norm(x, weight, EPSILON)
    assert torch.equal(result, in_place)
    torch.testing.assert_close(result, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("tokens", "heads", "head_dim"), [(1, 4, 64), (5, 3, 6), (300, 8, 128)])
def test_rotations_are_alike_and_leave_the_other_heads(
    tokens: int, heads: int, head_dim: int, dtype: torch.dtype, without_native: Callable[[], None]
) -> None:
    fused = torch.randn(tokens, heads + 2, head_dim).to(dtype)
    cos, sin = torch.randn(2, tokens, 1, head_dim // 2).to(dtype)
    expected = fused.clone()
    kernels.rotate_in_place(fused[:, :heads], cos, sin)
    without_native()
    kernels.rotate_in_place(expected[:, :heads], cos, sin)
    torch.testing.assert_close(fused, expected, atol=3 * TOLERANCES[dtype], rtol=TOLERANCES[dtype])
    assert torch.equal(fused[:, heads:], expected[:, heads:])


@needs_bfloat16_products
@given(
    rows=st.integers(1, 40) | st.sampled_from([192, 193, 500]),
    columns=st.integers(1, 200),
    pairs=st.integers(1, 80),
    has_bias=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_packed_product_is_the_exact_one_rounded_once(
    rows: int, columns: int, pairs: int, has_bias: bool
) -> None:
    x, weight, residual = (
        torch.randn(shape).bfloat16() for shape in ((rows, 2 * pairs), (columns, 2 * pairs), (rows, columns))
    )
    bias = torch.randn(columns).bfloat16() if has_bias else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    packed = packed_linear.product(Linear(weight, bias), MEMORY)
    assert isinstance(packed, packed_linear.PackedLinear)
    rounding = 2.0**-8
    torch.testing.assert_close(packed(x).double(), exact, atol=1e-3, rtol=rounding)
    torch.testing.assert_close(
        packed.add_to(residual, x).double(), exact + residual.double(), atol=1e-3, rtol=rounding
    )
    logits = packed_linear.head(weight, MEMORY)(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-4, rtol=1e-5)


@needs_bfloat16_products
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (7, 96), (200, 256)])
def test_a_packed_gate_is_the_plain_one(rows: int, width: int) -> None:
    x, weight = torch.randn(rows, 64), torch.randn(2 * width, 64) / 8
    expected = GatedLinear(Linear(weight.bfloat16().float(), None))(x.bfloat16().float())
    packed = packed_linear.gate(Linear(weight.bfloat16(), None), MEMORY)
    assert isinstance(packed, packed_linear.PackedGate)
    torch.testing.assert_close(packed(x.bfloat16()).float(), expected, atol=1e-3, rtol=2.0**-8)


@needs_bfloat16_products
def test_products_that_cannot_be_packed_stay_plain() -> None:
    odd = Linear(torch.ones(8, 7, dtype=torch.bfloat16), None)
    assert packed_linear.product(odd, MEMORY) is odd
    single = Linear(torch.ones(8, 8), None)
    assert packed_linear.product(single, MEMORY) is single
    narrow = Linear(torch.ones(2 * 24, 8, dtype=torch.bfloat16), None)
    assert isinstance(packed_linear.gate(narrow, MEMORY), GatedLinear)


@needs_bfloat16_products
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # what it warns of is what is tested
def test_threads_may_compute_at_the_same_time_and_so_may_a_forked_child() -> None:
    x, weight = torch.randn(64, 256).bfloat16(), torch.randn(512, 256).bfloat16()
    packed = packed_linear.product(Linear(weight, None), MEMORY)
    expected = packed(x)
    wrong: list[int] = []

    def compute() -> None:
        torch.set_num_threads(2)
        wrong.extend(round_ for round_ in range(60) if not torch.equal(packed(x), expected))

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(packed(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_call_with_too_few_fields_is_refused() -> None:
    with pytest.raises(TypeError, match="2 arguments, not 11"):
        kernels.native.norm(1, 2)


def test_weights_share_pieces_of_memory_but_no_byte() -> None:
    memory = WeightMemory()
    half = PIECE_BYTES // 2
    tensors = [memory.empty((size,), torch.uint8) for size in (3, half, 5, half, 2 * PIECE_BYTES, 7)]
    starts = [tensor.data_ptr() for tensor in tensors]
    assert all(start % 64 == 0 for start in starts)
    assert starts[1] - starts[0] == 64, "one behind the other"
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    assert all((tensor == number + 1).all() for number, tensor in enumerate(tensors))
