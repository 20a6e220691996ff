"""KV events over real sockets: a worker's publisher, the router's subscriber, and a plain ZMQ subscriber."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import msgspec
import pytest
import zmq
from mini_fleet import until
from stepped_pair import SECRET

from baton.engine.block_manager import BlockManager
from baton.errors import Unavailable
from baton.fleet import ModelInfo, Role, WorkerInfo, WorkerProfile
from baton.kv_events import SNAPSHOT, decode_sequence, encode_sequence, worker_keys
from baton.router.kv_events.subscribers import Subscribers
from baton.router.prefix_index import PrefixIndex
from baton.worker.kv_publisher import KvEventsConfig, KvPublisher

POOL_BLOCKS = 64
HASHES = [sha256(bytes([i])).digest()[:16] for i in range(40)]
WAIT_MS = 5000


@dataclass
class Publisher:
    """A worker's pool and its publisher."""

    blocks: BlockManager
    publisher: KvPublisher
    info: WorkerInfo

    def cache(self, *hashes: bytes) -> None:
        held = self.blocks.allocate(len(hashes))
        for position, block_id in enumerate(held):
            parent = hashes[position - 1] if position else None
            self.blocks.publish(block_id, hashes[position], parent, range(16))
        self.blocks.release(held)


@contextmanager
def published(port: int = 0, kept_batches: int = 100) -> Iterator[Publisher]:
    blocks, epoch = BlockManager(POOL_BLOCKS, 16), secrets.token_bytes(8)
    crashes: list[BaseException] = []
    config = KvEventsConfig("127.0.0.1", port, SECRET, "w", epoch, "m")
    publisher = KvPublisher(config, blocks, crashes.append, kept_batches)
    addresses = f"127.0.0.1:{publisher.port}", f"127.0.0.1:{publisher.replay_port}"
    model, profile = ModelInfo("m", "f", 1, 1), WorkerProfile()
    info = WorkerInfo("w", epoch, Role.PREFILL, "h:1", 1, model, b"", 16, profile, "0", (), *addresses)
    yield Publisher(blocks, publisher, info)
    publisher.close()
    assert crashes == []


@asynccontextmanager
async def subscribed(index: PrefixIndex, secret: bytes = SECRET) -> AsyncIterator[Subscribers]:
    crashes: list[BaseException] = []
    subscribers = Subscribers(secret, index, crashes.append)
    yield subscribers
    await subscribers.close()
    assert crashes == []


async def test_the_index_follows_what_the_pool_stores_evicts_and_clears() -> None:
    index = PrefixIndex()
    with published() as worker:
        worker.cache(*HASHES[:3])
        async with subscribed(index) as subscribers:
            subscribers.add(worker.info, lambda: POOL_BLOCKS)
            await until(lambda: subscribers.is_exact("w"))
            await until(lambda: index.match("w", HASHES) == 3)
            worker.cache(*HASHES[3:20])
            await until(lambda: index.match("w", HASHES) == 20)
            worker.blocks.release(worker.blocks.allocate(POOL_BLOCKS - 1))
            await until(lambda: index.stored("w") == 1)
            worker.blocks.clear_cache()
            await until(lambda: index.stored("w") == 0)


async def test_a_restarted_worker_on_the_same_port_is_not_taken_for_its_predecessor() -> None:
    index = PrefixIndex()
    async with subscribed(index) as subscribers:
        with published(port=23_457) as before:
            before.cache(*HASHES[:5])
            subscribers.add(before.info, lambda: POOL_BLOCKS)
            await until(lambda: index.match("w", HASHES) == 5)
        with published(port=23_457) as after:
            after.cache(*HASHES[5:9])
            await asyncio.sleep(0.3)  # time to connect again, were it let in
            assert index.match("w", HASHES) == 5, "nothing of another epoch enters"
            subscribers.remove("w")
            index.forget("w")
            subscribers.add(after.info, lambda: POOL_BLOCKS)
            await until(lambda: index.match("w", HASHES[5:]) == 4)
            assert index.match("w", HASHES) == 0


async def test_who_lacks_the_secret_hears_nothing() -> None:
    index = PrefixIndex()
    with published() as worker:
        worker.cache(*HASHES[:5])
        async with subscribed(index, b"another secret" * 4) as subscribers:
            subscribers.add(worker.info, lambda: POOL_BLOCKS)
            await asyncio.sleep(0.5)
            assert not subscribers.is_exact("w")
            assert index.stored("w") == 0


async def test_a_worker_with_more_blocks_than_its_pool_is_credited_with_none() -> None:
    index = PrefixIndex()
    with published() as worker:
        worker.cache(*HASHES[:5])
        async with subscribed(index) as subscribers:
            subscribers.add(worker.info, lambda: 4)
            await until(lambda: subscribers.counts.rejections > 0)
            assert not subscribers.is_exact("w")
            assert index.stored("w") == 0


def test_a_port_that_is_taken_is_named() -> None:
    with (
        published() as worker,
        pytest.raises(Unavailable, match=f"127.0.0.1:{worker.publisher.port}"),
        published(port=worker.publisher.port),
    ):
        pass


@contextmanager
def plain_socket(kind: int, address: str, info: WorkerInfo) -> Iterator[zmq.Socket[bytes]]:
    """What a subscriber of vLLM's events opens, and the two options that CURVE takes."""
    with zmq.Context() as context, context.socket(kind) as socket:
        socket.curve_serverkey, _ = worker_keys(SECRET, info.worker_id, info.epoch)
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.rcvtimeo = WAIT_MS
        socket.linger = 0
        socket.connect(f"tcp://{address}")
        yield socket


def asked(info: WorkerInfo, start: int) -> list[tuple[int, Any]]:
    answer: list[tuple[int, Any]] = []
    with plain_socket(zmq.DEALER, info.kv_replay_address, info) as replay:
        replay.send_multipart([b"", encode_sequence(start)])
        while True:
            empty, sequence, batch = replay.recv_multipart()
            assert empty == b""
            if not batch:
                assert decode_sequence(sequence) == SNAPSHOT
                return answer
            answer.append((decode_sequence(sequence), msgspec.msgpack.decode(batch)))


def test_a_plain_subscriber_reads_the_form_of_vllm() -> None:
    with published() as worker, plain_socket(zmq.SUB, worker.info.kv_events_address, worker.info) as events:
        events.subscribe(b"kv@w")
        while not events.poll(50):  # a subscription takes effect at a time that nobody tells
            worker.blocks.clear_cache()
        worker.cache(*HASHES[:2])
        while True:
            topic, sequence, batch = events.recv_multipart()
            ts, happened, rank = msgspec.msgpack.decode(batch)
            if happened[-1][0] == "BlockStored":
                break
        assert (topic, len(sequence), rank) == (b"kv@w@m", 8, None)
        assert ts > 0
        stored = [event for event in happened if event[0] == "BlockStored"]
        hashes = [block_hash for event in stored for block_hash in event[1]]
        assert hashes == HASHES[: len(hashes)]
        assert stored[0][2:] == [None, [*range(16)] * len(stored[0][1]), 16, None, None, None]


def test_missed_batches_and_all_that_is_cached_can_be_asked_for() -> None:
    with published(kept_batches=2) as worker:
        for block_hash in HASHES[:4]:
            last = asked(worker.info, SNAPSHOT)[-1][0]
            worker.cache(block_hash)
            while asked(worker.info, SNAPSHOT)[-1][0] == last:
                pass
        last, snapshot = asked(worker.info, SNAPSHOT)[-1]
        assert [event[0] for event in snapshot[1]] == ["AllBlocksCleared", "BlockStored"]
        assert set(snapshot[1][1][1]) == set(HASHES[:4])
        assert [sequence for sequence, _ in asked(worker.info, 0)] == [last - 1, last], "two are kept"
        assert asked(worker.info, last + 1) == []
