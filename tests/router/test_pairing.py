"""Which workers a router uses together: all whose blocks can be brought into each other's layout."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from baton.fleet import (
    Fleet,
    KVBlocks,
    Member,
    ModelInfo,
    Role,
    WorkerInfo,
    WorkerLoad,
    WorkerProfile,
    WorkerState,
)
from baton.kvtransfer.layout import KVLayout
from baton.router.prompt_hashes import PromptHashes
from baton.router.workers import Workers

LAYOUT = KVLayout(model="m", dtype="bfloat16", block_size=16, layers=2, kv_heads=4, head_dim=8)


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers(b"the fleet's secret", "router", lambda error: None)
    yield made
    await made.close()


def member(worker_id: str, layout: bytes | KVLayout, block_size: int = 16) -> Member:
    role = Role.PREFILL if worker_id.startswith("prefill") else Role.DECODE
    worker = WorkerInfo(
        worker_id=worker_id,
        epoch=worker_id.encode(),
        role=role,
        address="127.0.0.1:1",
        pid=1,
        model=ModelInfo("m", "m", 2048, 320),
        kv_layout=layout if isinstance(layout, bytes) else msgspec.msgpack.encode(layout),
        block_size=block_size,
        profile=WorkerProfile(),
        version="",
    )
    return Member(worker, WorkerState.READY, WorkerLoad(kv_blocks=KVBlocks(total=64, free=64)))


def changed(**fields: object) -> KVLayout:
    layout: KVLayout = msgspec.structs.replace(LAYOUT, **fields)
    return layout


def ids(workers: Workers) -> list[str]:
    return [member.worker.worker_id for member in workers.members]


@pytest.mark.parametrize(
    "other",
    [changed(block_size=32), changed(dtype="float32"), changed(tp_degree=2), changed(tp_degree=8)],
    ids=str,
)
async def test_workers_whose_blocks_can_be_converted_are_used_together(
    workers: Workers, other: KVLayout
) -> None:
    workers.update(Fleet((member("prefill", LAYOUT), member("decode", other))))
    assert ids(workers) == ["prefill", "decode"]


@pytest.mark.parametrize(
    "field", ["model", "weight_version", "layers", "kv_heads", "head_dim", "tp_degree", "dtype"]
)
async def test_a_worker_whose_blocks_cannot_be_converted_is_refused_by_field(
    workers: Workers, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = changed(**{field: "other" if isinstance(getattr(LAYOUT, field), str) else 3})
    workers.update(Fleet((member("prefill", LAYOUT), member("decode", other))))
    assert ids(workers) == ["prefill"]
    assert field in caplog.text


async def test_a_worker_whose_layout_cannot_be_read_is_refused(workers: Workers) -> None:
    workers.update(Fleet((member("prefill", LAYOUT), member("decode", b"\xc1"))))
    assert ids(workers) == ["prefill"]


async def test_the_router_counts_in_the_smallest_blocks(workers: Workers) -> None:
    workers.update(Fleet((member("prefill", changed(block_size=48), 48), member("decode", LAYOUT))))
    assert workers.blocks_for(100) == 7


async def test_workers_of_unlike_blocks_are_each_credited_in_their_own(workers: Workers) -> None:
    members = member("prefill", changed(block_size=48), 48), member("decode", LAYOUT)
    workers.update(Fleet(members))
    hashes = PromptHashes(range(100), "")
    for worker in members:
        workers.caches.note_cached(worker.worker.worker_id, hashes)
    slots = [workers.caches.index.slot(worker_id) for worker_id in ("prefill", "decode")]
    assert workers.caches.matched_tokens(hashes)[slots].tolist() == [96, 96]
    shorter = PromptHashes(range(60), "")
    assert workers.caches.matched_tokens(shorter)[slots].tolist() == [48, 48]
    assert not workers.caches.matched_tokens(PromptHashes(range(100), "another tenant")).any()
