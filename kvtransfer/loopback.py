"""`loopback://`: between two agents of one process; the first-class fake that tests and simulations run on.

The same halves of a transfer as over sockets; messages are handed from one agent's I/O thread to the other's,
one frame of blocks at a time. `Faults` make the way lossy, slow or wrong on purpose.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from baton.kvtransfer.copying import CopyingPacker, CopyingUnpacker
from baton.kvtransfer.errors import PeerLost, TransferError, Unauthenticated
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.link import Link, LinkOwner
from baton.kvtransfer.messages import Message
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.transport import LocalWorker, Transport

Choose = Callable[[Message], bool]


def _never(_: Message) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to messages on their way to an endpoint: each is delayed, and those chosen are lost, come
    twice, or have a byte of their payload changed."""

    delay_s: float = 0.0
    drop: Choose = _never
    duplicate: Choose = _never
    corrupt: Choose = _never


_endpoints: dict[str, LoopbackTransport] = {}
_endpoints_lock = threading.Lock()


class LoopbackTransport(Transport):
    scheme: ClassVar[str] = "loopback"

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self.faults = Faults()
        self._endpoint = f"loopback://{secrets.token_hex(8)}"
        self._links: set[_LoopbackLink] = set()

    @staticmethod
    def at(endpoint: str) -> LoopbackTransport:
        """The transport that listens at `endpoint`. Raises PeerLost."""
        with _endpoints_lock:
            transport = _endpoints.get(endpoint)
        if transport is None:
            raise PeerLost("no agent of this process listens there")
        return transport

    def listen(self) -> str:
        with _endpoints_lock:
            _endpoints[self._endpoint] = self
        return self._endpoint

    async def connect(self, endpoint: str, epoch: bytes) -> SendChannel:
        peer = self.at(endpoint)
        if peer.worker.epoch != epoch:
            raise PeerLost(f"the peer has restarted: epoch {peer.worker.epoch.hex()}, not {epoch.hex()}")
        if not hmac.compare_digest(peer.worker.secret, self.worker.secret):
            raise Unauthenticated("the peer does not hold this cluster's secret")
        near, far = _LoopbackLink(self.worker.io, peer), _LoopbackLink(peer.worker.io, self)
        near.far, far.far = far, near
        packer = CopyingPacker(self.worker.blocks, self.worker.checksum)
        channel = SendChannel(self.scheme, near, packer, self.sent, lambda: self._links.discard(near))
        near.owner = channel
        self._links.add(near)
        peer.worker.io.post(lambda: peer.accept(far))
        return channel

    def accept(self, link: _LoopbackLink) -> None:
        """On this agent's I/O thread, before any message of the link."""
        unpacker = CopyingUnpacker()
        inbox = self.worker.inbox
        link.owner = ReceiveChannel(link, inbox, unpacker, self.received, lambda: self._links.discard(link))
        self._links.add(link)
        if self._endpoint not in _endpoints:
            link.close(PeerLost("this agent is closing"))

    def close(self) -> None:
        with _endpoints_lock:
            _endpoints.pop(self._endpoint, None)
        for link in list(self._links):
            link.close(PeerLost("this agent is closing"))


class _LoopbackLink(Link):
    owner: LinkOwner
    far: _LoopbackLink

    def __init__(self, io: IOThread, target: LoopbackTransport) -> None:
        """target: the transport at the other end, whose faults apply to what is sent there."""
        self.io = io
        self._target = target
        self._is_closed = False
        self._has_frame_under_way = False

    def send(self, message: Message) -> None:
        self.io.post(lambda: self._carry(message, memoryview(b""), lambda: None))

    def flush(self) -> None:
        self.io.post(self._pull)

    def release_payload(self) -> None:
        """A payload is copied when it is sent."""

    def _pull(self) -> None:
        if self._is_closed or self._has_frame_under_way:
            return
        frame = self.owner.next_frame()
        if frame is not None:
            self._has_frame_under_way = True
            self._carry(frame.message, memoryview(b"".join(frame.payload)), self._on_taken)

    def _on_taken(self) -> None:
        """The other side is through with the frame, whose buffer may be used again."""
        self._has_frame_under_way = False
        self._pull()

    def _carry(self, message: Message, payload: memoryview, taken: Callable[[], None]) -> None:
        faults = self._target.faults
        copies = 0 if faults.drop(message) else 2 if faults.duplicate(message) else 1
        if faults.corrupt(message):
            payload = memoryview(bytes([payload[0] ^ 1]) + payload[1:])

        def deliver() -> None:
            for _ in range(copies):
                self.far.receive(message, payload)
            self.io.post(taken)

        if faults.delay_s:
            self.far.io.post(lambda: self._delay(faults.delay_s, deliver))
        else:
            self.far.io.post(deliver)

    def _delay(self, delay_s: float, deliver: Callable[[], None]) -> None:
        self.far.io.loop.call_later(delay_s, deliver)

    def receive(self, message: Message, payload: memoryview) -> None:
        """On this end's I/O thread."""
        if self._is_closed:
            return
        try:
            self.owner.on_message(message, payload)
        except TransferError as error:
            self.close(error)

    def close(self, error: TransferError) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.owner.on_closed(error)
        self.far.io.post(lambda: self.far.close(PeerLost("the peer closed the connection")))
