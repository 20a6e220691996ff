"""Asking a worker for what was missed: one question to its replay socket, one answer of several batches."""

from __future__ import annotations

import asyncio

import zmq
import zmq.asyncio

from baton.kv_events import SNAPSHOT, decode_sequence, encode_sequence
from baton.router.kv_events.replica import ImplausibleEvents
from baton.router.kv_events.sockets import open_socket

_ANSWER_TIMEOUT_S = 10.0
_MAX_ANSWER_BYTES = 256 << 20


class NotAnswered(Exception):
    """The worker's replay socket has not answered, or not to the end, in time."""


async def ask(context: zmq.asyncio.Context, address: str, key: bytes, start: int) -> list[tuple[int, bytes]]:
    """The batches from `start` on, as far as the worker still has them, or a snapshot, each with its sequence.
    key: the worker's public one. Raises NotAnswered and ImplausibleEvents."""
    with open_socket(context, zmq.DEALER, address, key) as socket:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await socket.send_multipart([b"", encode_sequence(start)])
                return await _answer(socket)
        except TimeoutError:
            raise NotAnswered(f"{address} has not answered within {_ANSWER_TIMEOUT_S:g} s") from None


async def _answer(socket: zmq.asyncio.Socket) -> list[tuple[int, bytes]]:
    batches: list[tuple[int, bytes]] = []
    answer_bytes = 0
    while True:
        sequence, batch = read_frames(await socket.recv_multipart())
        if sequence == SNAPSHOT and not batch:
            return batches
        batches.append((sequence, batch))
        answer_bytes += len(batch)
        if answer_bytes > _MAX_ANSWER_BYTES:
            raise ImplausibleEvents(f"an answer of more than {_MAX_ANSWER_BYTES} bytes, the limit")


def read_frames(frames: list[bytes]) -> tuple[int, bytes]:
    """Sequence and batch of `[topic or nothing, sequence, batch]`. Raises ImplausibleEvents."""
    try:
        _, sequence, batch = frames
        return decode_sequence(sequence), batch
    except ValueError as error:
        raise ImplausibleEvents(f"{len(frames)} frames: {error}") from error
