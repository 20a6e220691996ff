"""What all schemes but `loopback` share: listening, connecting and shaking hands over stream sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.errors import PeerLost, TransferError
from baton.kvtransfer.handshake import ReceiverHandshake, SenderHandshake
from baton.kvtransfer.link import LinkOwner
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.stream_link import StreamLink
from baton.kvtransfer.transport import PREFLIGHT_S, LocalWorker, Transport

BACKLOG = 128
MAX_STRANGERS = 64
"""Connections that have not proved themselves yet; one more is closed at once."""

ACCEPT_PAUSE_S = 1.0
"""How long to leave new connections waiting when the process has run out of descriptors."""


class StreamTransport(Transport):
    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self._listener: socket.socket | None = None
        self._links: set[StreamLink] = set()
        self._strangers: dict[StreamLink, asyncio.TimerHandle] = {}

    # --- what the schemes differ in ------------------------------------------------------------------------

    max_payload_bytes: int
    takes_fds: ClassVar[bool]
    """Whether descriptors come with a peer's proof."""

    @abstractmethod
    def _bind(self) -> tuple[socket.socket, str]:
        """A bound socket and its endpoint. Raises SchemeUnavailable."""

    @abstractmethod
    def _dial(self, endpoint: str) -> tuple[socket.socket, tuple[str, int] | bytes]:
        """A fresh socket and the address to connect it to. Raises PeerLost for an endpoint that is none."""

    @abstractmethod
    def _tune(self, sock: socket.socket) -> None:
        """Sets a connection's options, on either side."""

    @abstractmethod
    def _packer(self) -> Packer: ...

    @abstractmethod
    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        """For a peer that has proved itself; `fds` came with its proof and stay the caller's."""

    @property
    def frame_bytes(self) -> int:
        """The longest payload that is taken, by whatever way it comes."""
        return self.max_payload_bytes

    @abstractmethod
    def _offered_fds(self) -> Sequence[int]:
        """Descriptors that travel with this worker's proof."""

    def _offered_handle(self) -> bytes:
        """What else travels with the proof, so that the peer reaches the pool."""
        return b""

    def _sending_end(
        self, link: StreamLink, channel: SendChannel, packer: Packer, frame_bytes: int
    ) -> LinkOwner:
        """What owns a link whose peer has proved itself: the channel, where frames carry all there is.

        frame_bytes: the longest payload that the peer takes. Raises whatever is in the way.
        """
        return channel

    def _receiving_end(self, link: StreamLink, channel: ReceiveChannel, unpacker: Unpacker) -> LinkOwner:
        """As `_sending_end`, on the other side."""
        return channel

    # --- the receiving half --------------------------------------------------------------------------------

    def listen(self) -> str:
        self._listener, endpoint = self._bind()
        self._listener.setblocking(False)
        self._listener.listen(BACKLOG)
        self._await_connections()
        return endpoint

    def _await_connections(self) -> None:
        if self._listener is not None:
            self.worker.io.loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors or memory: the listener stays readable, so look away for a while.
            self.worker.io.loop.remove_reader(listener)
            self.worker.io.loop.call_later(ACCEPT_PAUSE_S, self._await_connections)
            return
        if len(self._strangers) >= MAX_STRANGERS:
            sock.close()
            return
        sock.setblocking(False)
        self._tune(sock)
        self._greet(StreamLink(self.worker.io, sock))

    def _greet(self, link: StreamLink) -> None:
        link.takes_fds = self.takes_fds
        late = PeerLost(f"the connecting peer has not proved itself within {PREFLIGHT_S} s")
        self._strangers[link] = self.worker.io.loop.call_later(PREFLIGHT_S, link.close, late)
        self._links.add(link)

        def admit(proof: Proof) -> int:
            unpacker = self._unpacker(proof, link.received_fds)
            inbox = self.worker.inbox
            channel = ReceiveChannel(link, inbox, unpacker, self.received, lambda: self._links.discard(link))
            owner = self._receiving_end(link, channel, unpacker)
            link.takes_fds = False
            link.drop_fds()
            self._strangers.pop(link).cancel()
            link.reader.allow(self.max_payload_bytes)
            link.owner = owner
            return self.frame_bytes

        def failed(_: TransferError) -> None:
            self._strangers.pop(link).cancel()
            self._links.discard(link)

        ReceiverHandshake(link, self.scheme, self.worker.secret, self.worker.epoch, admit, failed).begin()

    # --- the sending half ----------------------------------------------------------------------------------

    async def connect(self, endpoint: str, epoch: bytes) -> SendChannel:
        loop = self.worker.io.loop
        sock, address = self._dial(endpoint)
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            self._tune(sock)
        except OSError as error:
            sock.close()
            raise PeerLost(os.strerror(error.errno) if error.errno else str(error)) from error
        except asyncio.CancelledError:
            sock.close()
            raise
        return await self._shake_hands(StreamLink(self.worker.io, sock), epoch)

    async def _shake_hands(self, link: StreamLink, epoch: bytes) -> SendChannel:
        worker = self.worker
        outcome: asyncio.Future[tuple[SendChannel, LinkOwner]] = worker.io.loop.create_future()

        def ready(frame_bytes: int) -> None:
            link.reader.allow(payload_bytes=0)
            packer = self._packer()
            channel = SendChannel(self.scheme, link, packer, self.sent, lambda: self._links.discard(link))
            link.owner = end = self._sending_end(link, channel, packer, frame_bytes)
            if not outcome.done():
                outcome.set_result((channel, end))

        def failed(error: TransferError) -> None:
            self._links.discard(link)
            if not outcome.done():
                outcome.set_exception(error)

        self._links.add(link)
        pool = (len(worker.blocks), worker.blocks.block_bytes, self._offered_handle())
        SenderHandshake(
            link, self.scheme, worker.secret, epoch, pool, self._offered_fds(), ready, failed
        ).begin()
        try:
            return await self._opened(*await outcome)
        except asyncio.CancelledError:
            link.close(PeerLost("nobody waits for this connection any more"))
            raise

    async def _opened(self, channel: SendChannel, end: LinkOwner) -> SendChannel:
        """`channel`, once blocks can leave by `end`. Raises what closed the link before."""
        return channel

    def close(self) -> None:
        if self._listener is not None:
            self.worker.io.loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for link in list(self._links):
            link.close(PeerLost("this agent is closing"))
