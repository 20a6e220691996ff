"""ZMQ sockets to workers, authenticated both ways by the worker's public key, which only the cluster knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import zmq
import zmq.asyncio

from baton.kv_events import MAX_BATCH_BYTES

_MAX_QUEUED_BATCHES = 4096
_HEARTBEAT_MS = 5000
_RECONNECT_MS, _MAX_RECONNECT_MS = 100, 5000
_MAX_SOCKETS = 32_768


def make_context() -> zmq.asyncio.Context:
    context = zmq.asyncio.Context()
    context.max_sockets = _MAX_SOCKETS
    return context


@contextmanager
def open_socket(
    context: zmq.asyncio.Context, kind: int, address: str, key: bytes
) -> Iterator[zmq.asyncio.Socket]:
    """Connects, and connects again by itself. `address`: host:port. `key`: the worker's public one."""
    socket = context.socket(kind)
    try:
        socket.curve_serverkey = key
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()
        socket.linger = 0
        socket.rcvhwm = _MAX_QUEUED_BATCHES
        socket.maxmsgsize = MAX_BATCH_BYTES
        socket.heartbeat_ivl = _HEARTBEAT_MS
        socket.reconnect_ivl, socket.reconnect_ivl_max = _RECONNECT_MS, _MAX_RECONNECT_MS
        socket.ipv6 = address.startswith("[")
        socket.connect(f"tcp://{address}")
        yield socket
    finally:
        socket.close()
