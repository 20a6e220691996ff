"""Hand-offs between pools that lie differently, over real agents: every byte where the receiver looks for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec
import numpy as np
import pytest
import torch
from transfer_ends import WAIT_S, End, Outcome

from baton.kvtransfer.base import KVLayout, TransferState
from baton.kvtransfer.errors import BadTicket, LayoutMismatch, TransferAborted

LAYOUT = KVLayout(model="m", dtype="float32", block_size=16, layers=2, kv_heads=4, head_dim=8)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NUM_BLOCKS = 24
FOREIGN = 7.0


class Rank:
    """One rank's agent over a pool whose every value is FOREIGN."""

    def __init__(self, scheme: str, layout: KVLayout, stack: ExitStack) -> None:
        self.layout = layout
        self.end = End(scheme, num_blocks=NUM_BLOCKS, block_bytes=layout.block_bytes, layout=layout)
        stack.callback(self.end.close)
        self.values.fill_(FOREIGN)

    @property
    def values(self) -> torch.Tensor:
        """[num_blocks, layers, 2, block_size, heads, head_dim]"""
        layout = self.layout
        flat: torch.Tensor = self.end.memory.blocks.view(-1).view(DTYPES[layout.dtype])
        return flat.view(NUM_BLOCKS, layout.layers, 2, layout.block_size, len(layout.heads), layout.head_dim)

    def dense(self, block_ids: list[int], tokens: int) -> torch.Tensor:
        """[tokens, layers, 2, heads, head_dim] as these blocks hold them."""
        blocks = self.values[torch.tensor(block_ids)]
        return blocks.permute(0, 3, 1, 2, 4, 5).reshape(-1, *blocks.shape[1:3], *blocks.shape[4:])[:tokens]

    def fill(self, block_ids: list[int], dense: torch.Tensor) -> None:
        """Stores this rank's heads of [tokens, layers, 2, kv_heads, head_dim], zero behind the last token."""
        self.values[torch.tensor(block_ids)] = 0
        for token, value in enumerate(dense[:, :, :, self.layout.heads.start : self.layout.heads.stop]):
            block_id = block_ids[token // self.layout.block_size]
            self.values[block_id, :, :, token % self.layout.block_size] = value


@contextmanager
def ranks(scheme: str, layout: KVLayout) -> Iterator[list[Rank]]:
    with ExitStack() as stack:
        yield [
            Rank(scheme, msgspec.structs.replace(layout, tp_rank=rank), stack)
            for rank in range(layout.tp_degree)
        ]


def blocks_for(tokens: int, layout: KVLayout) -> int:
    return -(-tokens // layout.block_size)


def hand_off(
    senders: list[Rank], receivers: list[Rank], dense: torch.Tensor, skipped_blocks: int, pushes: int
) -> None:
    """Crosses all blocks of the receivers but the first `skipped_blocks`, in `pushes` pushes."""
    tokens = len(dense)
    sources = list(np.random.default_rng(tokens).permutation(NUM_BLOCKS))[
        : blocks_for(tokens, senders[0].layout)
    ]
    targets = list(range(3, 3 + blocks_for(tokens, receivers[0].layout)))[skipped_blocks:]
    positions = range(skipped_blocks, skipped_blocks + len(targets))
    for sender in senders:
        sender.fill(sources, dense)
    outcomes = []
    for receiver in receivers:
        outcome = Outcome()
        _, ticket = receiver.end.agent.expect(positions, targets, WAIT_S, outcome, tokens)
        sessions = [sender.end.open(ticket) for sender in senders]
        for part in np.array_split(np.arange(len(sources)), pushes):
            for opened in sessions:
                opened.session.push(part, np.array(sources)[part])
        outcomes.append((outcome, [opened.outcome for opened in sessions]))
    for (outcome, sent), receiver in zip(outcomes, receivers, strict=True):
        result = outcome.wait()
        assert result.state is TransferState.DONE, result.error
        assert (result.blocks, result.bytes) == (len(targets), len(targets) * receiver.layout.block_bytes)
        assert sum(each.wait().bytes for each in sent) == result.bytes
        heads = receiver.layout.heads
        wanted = dense[skipped_blocks * receiver.layout.block_size :, :, :, heads.start : heads.stop]
        got = receiver.dense(targets, len(wanted))
        assert torch.equal(got, wanted.to(got.dtype))
        untouched = [block for block in range(NUM_BLOCKS) if block not in targets]
        assert (receiver.values[torch.tensor(untouched)] == FOREIGN).all()


def content(layout: KVLayout, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    shape = (tokens, layout.layers, 2, layout.kv_heads, layout.head_dim)
    spread = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(
        -9, 4, shape, generator=generator
    )
    return spread.to(DTYPES[layout.dtype])


def changed(**fields: object) -> KVLayout:
    layout: KVLayout = msgspec.structs.replace(LAYOUT, **fields)
    return layout


@pytest.mark.parametrize("scheme", ["loopback", "shm", "tcp"])
@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (changed(tp_degree=2), changed()),
        (changed(), changed(tp_degree=2)),
        (changed(tp_degree=8), changed(tp_degree=2)),
        (changed(tp_degree=2), changed(tp_degree=8)),
        (changed(), changed(block_size=32)),
        (changed(block_size=32), changed()),
        (changed(block_size=24), changed(block_size=16)),
        (changed(dtype="bfloat16"), changed()),
        (changed(), changed(dtype="bfloat16")),
        (changed(tp_degree=2, dtype="float16"), changed(tp_degree=4, block_size=8, dtype="bfloat16")),
    ],
    ids=[
        "two ranks to one",
        "one rank to two",
        "replicated heads to two ranks",
        "two ranks to replicated heads",
        "block size 16 to 32",
        "block size 32 to 16",
        "block size 24 to 16",
        "bfloat16 to float32",
        "float32 to bfloat16",
        "all at once",
    ],
)
def test_every_value_arrives_in_the_receivers_layout(
    scheme: str, source: KVLayout, destination: KVLayout
) -> None:
    with ranks(scheme, source) as senders, ranks(scheme, destination) as receivers:
        hand_off(senders, receivers, content(source, 101), skipped_blocks=1, pushes=3)


def rounded(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Finite float32 as `dtype`, to nearest even, without torch's own conversion (IEEE 754, 4.3.1)."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return torch.from_numpy(values.numpy().astype(np.float16))
    bits = values.numpy().view(np.uint32)
    upper = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return torch.from_numpy(upper.view(np.int16)).view(torch.bfloat16)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_round_to_nearest_even_and_widen_exactly(dtype: str) -> None:
    """All finite patterns of the narrow format, what lies halfway to their neighbours, and what is close to it."""
    wide, narrow = changed(head_dim=128), changed(head_dim=128, dtype=dtype)
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype]).float()
    exact = patterns[torch.isfinite(patterns)]
    above = exact.view(torch.int32) + (1 << (15 if dtype == "bfloat16" else 12))
    values = torch.cat([exact, above.view(torch.float32), (above + 1).view(torch.float32)])
    tokens = len(values) // 2048
    dense = values[: tokens * 2048].view(tokens, 2, 2, 4, 128)
    with ranks("loopback", wide) as senders, ranks("loopback", narrow) as receivers:
        hand_off(senders, receivers, dense, skipped_blocks=0, pushes=1)
        received = receivers[0].dense(list(range(3, 3 + blocks_for(tokens, narrow))), tokens)
        assert torch.equal(received, rounded(dense, dtype))
    with ranks("loopback", narrow) as senders, ranks("loopback", wide) as receivers:
        hand_off(senders, receivers, received, skipped_blocks=0, pushes=1)
        widened = receivers[0].dense(list(range(3, 3 + blocks_for(tokens, narrow))), tokens)
        assert torch.equal(widened, received.float())


def test_a_wanted_block_leaves_only_when_all_its_tokens_are_there() -> None:
    with ranks("loopback", changed()) as [sender], ranks("loopback", changed(block_size=32)) as [receiver]:
        outcome = Outcome()
        _, ticket = receiver.end.agent.expect([0, 1], [5, 6], WAIT_S, outcome, 48)
        opened = sender.end.open(ticket)
        opened.session.push([0], [0])
        assert sender.end.agent.stats().blocks_sent == 0
        opened.session.push([2], [2])  # the request ends within the second block
        opened.session.push([1], [1])
        assert outcome.wait().state is TransferState.DONE
        assert opened.outcome.wait().blocks == 2


def test_a_rank_whose_heads_nobody_wants_is_done_at_once() -> None:
    with ranks("loopback", changed(tp_degree=2)) as senders, ranks("loopback", changed(tp_degree=2)) as to:
        _, ticket = to[0].end.agent.expect([0], [5], WAIT_S, Outcome())
        assert senders[1].end.open(ticket).outcome.wait().blocks == 0


def test_one_of_two_senders_giving_up_fails_the_whole_transfer() -> None:
    with ranks("loopback", changed(tp_degree=2)) as senders, ranks("loopback", changed()) as [receiver]:
        outcome = Outcome()
        _, ticket = receiver.end.agent.expect([0], [5], WAIT_S, outcome)
        first, second = (sender.end.open(ticket) for sender in senders)
        first.session.push([0], [0])
        second.session.fence("changed its mind")
        assert isinstance(outcome.wait().error, TransferAborted)
        assert first.outcome.wait().state is TransferState.FAILED


def test_the_share_of_one_head_cannot_be_brought_twice() -> None:
    half = changed(tp_degree=2)
    with (
        ranks("loopback", half) as [first, _],
        ranks("loopback", half) as [second, _],
        ranks("loopback", changed()) as [receiver],
    ):
        outcome = Outcome()
        _, ticket = receiver.end.agent.expect([0], [5], WAIT_S, outcome)
        first.end.open(ticket).session.push([0], [0])
        while receiver.end.agent.stats().blocks_received == 0:
            assert not outcome.is_called
        assert isinstance(second.end.open(ticket).outcome.wait().error, BadTicket)
        assert not outcome.is_called


@pytest.mark.parametrize("field", ["model", "weight_version", "layers", "kv_heads", "head_dim"])
def test_what_cannot_be_converted_is_refused_by_field_before_anything_moves(field: str) -> None:
    other: object = "other" if isinstance(getattr(LAYOUT, field), str) else 16
    with (
        ranks("loopback", changed(**{field: other})) as [sender],
        ranks("loopback", changed()) as [receiver],
    ):
        _, ticket = receiver.end.agent.expect([0], [5], WAIT_S, Outcome())
        with pytest.raises(LayoutMismatch, match=field):
            sender.end.open(ticket)


def test_a_position_behind_the_end_of_the_request_is_refused() -> None:
    with ranks("loopback", changed()) as [sender], ranks("loopback", changed(block_size=32)) as [receiver]:
        _, ticket = receiver.end.agent.expect([4], [5], WAIT_S, Outcome(), 17)
        with pytest.raises(BadTicket, match="position 4 is wanted of a request of 17 tokens"):
            sender.end.open(ticket)
