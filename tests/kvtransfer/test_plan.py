"""Between any two layouts of one model every value lands where it belongs, in the fewest copies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.kvtransfer.errors import LayoutMismatch
from baton.kvtransfer.layout import VALUE_BYTES, KVLayout
from baton.kvtransfer.plan import NOTHING, Conversion, Copies, Ids, shared_heads


def layout(**fields: object) -> KVLayout:
    return KVLayout(
        **{"model": "m", "dtype": "float32", "block_size": 16, "layers": 3, "kv_heads": 4, "head_dim": 8}  # type: ignore[arg-type]
        | fields
    )


def degrees(kv_heads: int) -> st.SearchStrategy[int]:
    return st.sampled_from([n for n in range(1, 9) if kv_heads % n == 0 or n % kv_heads == 0])


@st.composite
def pairs(draw: st.DrawFn) -> tuple[KVLayout, KVLayout]:
    """Two layouts of one model, all ranks of the first to be taken in turn."""
    common = {
        "kv_heads": draw(st.integers(1, 6)),
        "layers": draw(st.integers(1, 3)),
        "head_dim": draw(st.integers(1, 4)),
    }
    source, destination = (
        layout(
            **common,
            block_size=draw(st.integers(1, 12)),
            tp_degree=draw(degrees(common["kv_heads"])),
        )
        for _ in range(2)
    )
    return source, destination


def ranks(of: KVLayout) -> list[KVLayout]:
    return [
        KVLayout(**{name: getattr(of, name) for name in of.__struct_fields__} | {"tp_rank": rank})
        for rank in range(of.tp_degree)
    ]


def pool_of(dense: np.ndarray, rank: KVLayout, block_at: Ids, num_blocks: int) -> np.ndarray:
    """The obvious pool: token by token from the dense tensor [tokens, layers, 2, kv_heads, head_dim], zero behind
    the last token, -1 in blocks of others."""
    heads = rank.heads
    pool = np.full(
        (num_blocks, rank.layers, 2, rank.block_size, len(heads), rank.head_dim), -1.0, dense.dtype
    )
    pool[block_at] = 0
    for token in range(len(dense)):
        block = block_at[token // rank.block_size]
        pool[block, :, :, token % rank.block_size] = dense[token][:, :, heads.start : heads.stop]
    return pool


@settings(max_examples=150, deadline=None)
@given(pairs(), st.integers(1, 40), st.data())
def test_every_value_of_every_pair_lands_where_it_belongs(
    pair: tuple[KVLayout, KVLayout], tokens: int, data: st.DataObject
) -> None:
    source, destination = pair
    dense = np.arange(tokens * source.layers * 2 * source.kv_heads * source.head_dim, dtype=np.float32)
    dense = dense.reshape(tokens, source.layers, 2, source.kv_heads, source.head_dim) + 1
    sources = -(-tokens // source.block_size)
    block_at = np.array(data.draw(st.permutations(range(sources + 2)))[:sources], np.int64)
    wanted = -(-tokens // destination.block_size)
    positions = np.array(sorted(data.draw(st.sets(st.integers(0, wanted - 1), min_size=1))), np.int64)
    pools = [pool_of(dense, rank, block_at, sources + 2).reshape(-1) for rank in ranks(source)]
    for rank in ranks(destination):
        expected = pool_of(dense, rank, np.arange(wanted), wanted)[positions]
        got = np.full_like(expected, -1)
        for pool, sender in zip(pools, ranks(source), strict=True):
            conversion = Conversion.between(sender, rank)
            if not conversion.heads:
                continue
            units = conversion.units_of(positions, block_at, tokens)
            values = pool.reshape(-1, conversion.source_units.values)[units]
            values[units == NOTHING] = 0
            shape = (len(positions), rank.layers, 2, rank.block_size, len(conversion.heads), rank.head_dim)
            own = slice(conversion.heads.start - rank.heads.start, conversion.heads.stop - rank.heads.start)
            assert (got[..., own, :] == -1).all(), "two senders brought the same heads"
            got[..., own, :] = values.reshape(shape)
        assert (got == expected).all()


@given(pairs())
def test_the_shares_of_all_senders_cover_each_receiver_exactly_once(pair: tuple[KVLayout, KVLayout]) -> None:
    source, destination = pair
    for rank in ranks(destination):
        shares = [head for sender in ranks(source) for head in shared_heads(sender, rank)]
        assert sorted(shares) == list(rank.heads)


def copies(source: KVLayout, destination: KVLayout, block_at: list[int], positions: list[int]) -> int:
    tokens = (max(positions) + 1) * destination.block_size
    conversion = Conversion.between(source, destination)
    units = conversion.units_of(np.array(positions, np.int64), np.array(block_at, np.int64), tokens)
    return len(Copies.of(units))


def test_equal_layouts_take_one_copy_for_each_run_of_blocks() -> None:
    assert copies(layout(), layout(), [4, 5, 6, 7], [0, 1, 2, 3]) == 1
    assert copies(layout(), layout(), [4, 5, 9, 2], [0, 1, 2, 3]) == 3


def test_another_dtype_alone_costs_no_copy_more() -> None:
    assert copies(layout(), layout(dtype="bfloat16"), [4, 5, 6, 7], [0, 1, 2, 3]) == 1


PLANES = 3 * 2


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (layout(), layout(block_size=32), 2 * PLANES),  # a half of each plane from each block
        (layout(block_size=32), layout(), PLANES),
        (layout(block_size=16), layout(block_size=24), 2 * PLANES),  # 16 tokens and 8
        (layout(tp_degree=2), layout(), 1),  # all that the sender has
        (layout(), layout(tp_degree=2), PLANES * 16),  # half the heads of each token
        (layout(tp_degree=4), layout(tp_degree=2), 1),
        (layout(tp_degree=8, tp_rank=4), layout(tp_degree=4, tp_rank=2), 1),  # replicated heads
    ],
)
def test_unequal_layouts_take_the_fewest_copies_a_block(
    source: KVLayout, destination: KVLayout, expected: int
) -> None:
    assert copies(source, destination, [9, 4, 7, 2], [0]) == expected


@pytest.mark.parametrize("field", ["model", "weight_version", "layers", "kv_heads", "head_dim", "dtype"])
def test_what_cannot_be_converted_is_refused_by_field(field: str) -> None:
    other: object = "other" if isinstance(getattr(layout(), field), str) else 7
    with pytest.raises(LayoutMismatch, match=f"{field}: .*{other}"):
        Conversion.between(layout(), layout(**{field: other}))


@pytest.mark.parametrize(
    ("field", "value"), [("tp_degree", 3), ("tp_rank", 1), ("block_size", 0), ("tp_degree", 0)]
)
def test_a_layout_that_no_pool_can_have_is_refused_by_field(field: str, value: int) -> None:
    with pytest.raises(LayoutMismatch, match=field):
        Conversion.between(layout(), layout(**{field: value}))


@given(pairs())
def test_a_block_has_as_many_bytes_as_its_values(pair: tuple[KVLayout, KVLayout]) -> None:
    for rank in ranks(pair[0]):
        values = torch.empty(2 * rank.layers, rank.block_size, len(rank.heads), rank.head_dim)
        assert rank.block_bytes == values.numel() * VALUE_BYTES["float32"]
