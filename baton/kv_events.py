"""What a worker tells of its prefix cache, in the form that vLLM's ecosystem reads.

A ZMQ PUB socket sends `[topic, sequence, batch]`: the topic is `kv@<worker id>@<model>`, the sequence a signed
big-endian number of 8 bytes that counts from 0, the batch msgpack of an `EventBatch`. A second socket, a ROUTER,
answers `[b"", sequence]` with the batches from that one on as far as it still has them, as `[b"", sequence, batch]`
each, and ends with sequence -1 and an empty batch. Asked for sequence -1 it answers with batches that amount to all
that is cached: they begin with an `AllBlocksCleared` and carry the sequence of the last batch they contain.

Both sockets speak CURVE (https://rfc.zeromq.org/spec/26/). A worker's keys derive from the cluster's secret, its id
and its epoch: whoever can connect holds the secret and has reached the very process that was meant, and nobody else
reads along.
"""

from __future__ import annotations

import hmac
from typing import Annotated

import msgspec
import zmq
from zmq.utils import z85

from baton.block_hash import HASH_BYTES

SEQUENCE_BYTES = 8
SNAPSHOT = -1
"""Asked for: all that is cached. In an answer, with an empty batch: the end."""

MAX_EVENT_BLOCKS = 4096
"""In one batch, so that none takes long."""

MAX_BATCH_BYTES = 1 << 24

BlockHash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]


class BlockStored(msgspec.Struct, array_like=True, tag="BlockStored", frozen=True, gc=False):
    """These blocks, each the parent of the next, can be reused from now on.

    parent_block_hash: of the first one; None at the start of a prompt, and in snapshots. token_ids: of all blocks,
    as msgpack, for no part of Baton reads them; empty in snapshots. block_size: tokens a block. medium: None is the
    memory that the worker computes in.
    """

    block_hashes: list[BlockHash]
    parent_block_hash: bytes | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, array_like=True, tag="BlockRemoved", frozen=True, gc=False):
    """These blocks were evicted."""

    block_hashes: list[BlockHash]
    medium: str | None = None


class AllBlocksCleared(msgspec.Struct, array_like=True, tag="AllBlocksCleared", frozen=True, gc=False):
    """Nothing is cached any more."""


KvEvent = BlockStored | BlockRemoved | AllBlocksCleared


class EventBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What happened, in order. ts: seconds since 1970, of the worker's clock."""

    ts: float
    events: list[KvEvent]
    data_parallel_rank: int | None = None


encode_batch = msgspec.msgpack.Encoder().encode
decode_batch = msgspec.msgpack.Decoder(EventBatch).decode
"""Raises msgspec.DecodeError for what is no batch."""


def encode_sequence(sequence: int) -> bytes:
    return sequence.to_bytes(SEQUENCE_BYTES, "big", signed=True)


def decode_sequence(frame: bytes) -> int:
    """Raises ValueError for a frame of another length."""
    if len(frame) != SEQUENCE_BYTES:
        raise ValueError(f"a sequence of {len(frame)} bytes, not {SEQUENCE_BYTES}")
    return int.from_bytes(frame, "big", signed=True)


def topic(worker_id: str, model_name: str) -> bytes:
    return f"kv@{worker_id}@{model_name}".encode()


def worker_keys(secret: bytes, worker_id: str, epoch: bytes) -> tuple[bytes, bytes]:
    """The worker's CURVE keys, public and secret, 40 characters each. The public one is as secret as the cluster's
    secret is: knowing it is what admits a subscriber."""
    name = worker_id.encode()
    text = b"kv events\0" + len(name).to_bytes(8, "big") + name + epoch
    secret_key: bytes = z85.encode(hmac.digest(secret, text, "sha256"))
    return zmq.curve_public(secret_key), secret_key
