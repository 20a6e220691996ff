"""Publishes what the prefix cache gains and loses (`baton.kv_events` has the form), on a thread of its own.

The engine's thread notes changes in a `KvEventLog` and goes on; this one wakes, sends all that has come together
since, and answers subscribers that have missed something.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import zmq

from baton.engine.block_manager import BlockManager
from baton.errors import Unavailable
from baton.kv_events import SNAPSHOT, decode_sequence, encode_sequence, topic, worker_keys
from baton.rpc import host_port
from baton.worker.kv_batches import KvBatches
from baton.worker.kv_event_log import KvEventLog

_log = logging.getLogger(__name__)
_POLL_MS = 1000
_SEND_QUEUE_BATCHES = 10_000
"""A subscriber that is further behind misses batches, and asks for them."""

_MAX_KEPT_BATCHES = 8192  # below the send queue: an answer fits into it
_MAX_KEPT_BYTES = 4 << 20  # 50,000 changes of blocks; who has missed more is told all that is cached instead
_MAX_REQUEST_BYTES = 4096  # the frames of the handshake count as well


@dataclass(frozen=True, slots=True)
class KvEventsConfig:
    """host, port: where events are published (port 0: free ones are taken); the replay socket has the next port.
    The rest is who publishes; `secret` is the cluster's."""

    host: str
    port: int
    secret: bytes
    worker_id: str
    epoch: bytes
    model_name: str


class KvPublisher:
    """Listens to `blocks` from the construction on, which has to be before the engine's thread starts. Raises
    Unavailable where a port is taken. `on_crash` is called from the publisher's thread with a bug of ours."""

    def __init__(
        self,
        config: KvEventsConfig,
        blocks: BlockManager,
        on_crash: Callable[[BaseException], None],
        max_kept_batches: int = _MAX_KEPT_BATCHES,
    ) -> None:
        self._on_crash = on_crash
        self._topic = topic(config.worker_id, config.model_name)
        self._batches = KvBatches(blocks.block_size, max_kept_batches, _MAX_KEPT_BYTES)
        self._stopping = False
        with ExitStack() as opened:
            self._wake_fd = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            opened.callback(os.close, self._wake_fd)
            context = opened.enter_context(zmq.Context())
            self._events = opened.enter_context(_socket(context, zmq.PUB, config))
            self._replay = opened.enter_context(_socket(context, zmq.ROUTER, config))
            self.port, self.replay_port = _bind(self._events, self._replay, config)
            self._opened = opened.pop_all()
        self._changes = KvEventLog(blocks, self._wake)
        blocks.listen(self._changes)
        self._thread = threading.Thread(target=self._run, name="kv events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Joins the thread; the engine's has stopped by then."""
        self._stopping = True
        self._wake()
        self._thread.join()
        self._opened.close()

    def _wake(self) -> None:
        os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        poller.register(self._replay, zmq.POLLIN)
        try:
            while not self._stopping:
                ready = dict(poller.poll(_POLL_MS))
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                    self._publish()
                if self._replay in ready:
                    self._answer(self._replay.recv_multipart())
        except BaseException as error:
            self._on_crash(error)
            raise

    def _publish(self) -> None:
        for sequence, batch in self._batches.add(self._changes.take()):
            self._events.send_multipart([self._topic, encode_sequence(sequence), batch])

    def _answer(self, frames: list[bytes]) -> None:
        try:
            peer, empty, start = frames
            sequence = decode_sequence(start)
        except ValueError as error:
            _log.warning("kv events: a request is not understood: %s", error)
            return
        if sequence == SNAPSHOT:
            for batch in self._batches.snapshot():
                self._replay.send_multipart([peer, empty, encode_sequence(self._batches.sequence), batch])
        else:
            for kept, batch in self._batches.since(sequence):
                self._replay.send_multipart([peer, empty, encode_sequence(kept), batch])
        self._replay.send_multipart([peer, empty, encode_sequence(SNAPSHOT), b""])


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, config: KvEventsConfig) -> zmq.Socket[bytes]:
    """One that admits only those who know the worker's public key."""
    made = context.socket(kind)
    _, made.curve_secretkey = worker_keys(config.secret, config.worker_id, config.epoch)
    made.curve_server = True
    made.linger = 0
    made.sndhwm = _SEND_QUEUE_BATCHES
    made.maxmsgsize = _MAX_REQUEST_BYTES
    made.ipv6 = ":" in config.host
    return made


def _bind(events: zmq.Socket[bytes], replay: zmq.Socket[bytes], config: KvEventsConfig) -> tuple[int, int]:
    ports = []
    for publishing, port in ((events, config.port), (replay, config.port + 1 if config.port else 0)):
        address = host_port(config.host, port)
        try:
            ip = str(socket.getaddrinfo(config.host, port)[0][4][0])  # ZMQ takes no host's name here
            publishing.bind(f"tcp://{host_port(ip, port)}")
        except (OSError, zmq.ZMQError) as error:
            raise Unavailable(
                f"cannot listen on {address}: {error.strerror}", field="kv_events_port"
            ) from error
        ports.append(int(publishing.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]))
    return ports[0], ports[1]
