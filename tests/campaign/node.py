"""One worker's half of every hand-off: the parts of a `TransferAgent`, with the schedule in place of its thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from campaign.pool import BLOCK_BYTES, NUM_BLOCKS, Pause, Pool
from campaign.wire import (
    AnyPacker,
    PausingCopyingPacker,
    PausingDirectPacker,
    PausingMappingPacker,
    PausingTally,
    QueuedLink,
)
from transfer_ends import LAYOUT, SECRET

from baton.kvtransfer.base import OnDone, Ticket
from baton.kvtransfer.carrier import Unpacker
from baton.kvtransfer.copying import CopyingUnpacker
from baton.kvtransfer.errors import PeerLost
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.incoming import Incoming
from baton.kvtransfer.leases import ReadLeases
from baton.kvtransfer.mapping import MappingUnpacker
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.outbox import Outbox
from baton.kvtransfer.receiving import ReceiveChannel
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.ticket import open_sealed, seal

MAX_OPEN = 16


class Node:
    """One start of a worker; the next start of the same worker is another Node with another epoch."""

    checks_epochs = True
    """Of a peer that is connected to; the handshake does it on a real connection."""

    def __init__(
        self,
        worker: int,
        start: int,
        checksum: bool,
        pause: Callable[[Node], None],
        is_stalled: Callable[[], bool],
        next_owner: Callable[[], int],
    ) -> None:
        """pause: others may go on. is_stalled: whether a socket takes no more for now. next_owner: a number for a
        request that nobody has had."""
        self.worker = worker
        self.start = start
        self.name = f"{'ABC'[worker]}{start}"
        self.epoch = self.name.encode().ljust(8)
        self.pause: Pause = lambda: pause(self)
        self.is_stalled = is_stalled
        self.pool = Pool(self.name, self.pause, next_owner)
        self.inbox = Inbox(self.pool.blocks, checksum, MAX_OPEN, lambda at_s: None)
        self.outbox = Outbox(MAX_OPEN)
        self.links: list[QueuedLink] = []
        self.unpackers: list[Unpacker] = []
        self.waiting: dict[bytes, list[Outgoing]] = {}
        self.is_gone = False
        self.is_on_io_thread = False
        self.channels: dict[bytes, SendChannel] = {}
        self._checksum = checksum

    @cached_property
    def leases(self) -> ReadLeases:
        """Made when they are first needed, for that takes time."""
        return ReadLeases()

    def expect(
        self, positions: list[int], targets: list[int], ttl_s: float, on_done: OnDone
    ) -> tuple[Incoming, bytes]:
        incoming = self.inbox.expect(positions, targets, ttl_s, on_done)
        ticket = Ticket(
            transfer_id=incoming.transfer_id,
            slot=incoming.slot.index,
            generation=incoming.generation,
            epoch=self.epoch,
            endpoints=(str(self.worker),),
            layout=LAYOUT,
            block_bytes=BLOCK_BYTES,
            positions=incoming.positions.astype(np.int32).tobytes(),
            ttl_s=ttl_s,
        )
        return incoming, seal(ticket, SECRET)

    def take_up(self, sealed: bytes, on_done: OnDone) -> Outgoing:
        session = Outgoing(open_sealed(sealed, SECRET), self.pool.blocks, on_done, self.outbox.remove)
        self.outbox.add(session)
        return session

    def route(self, session: Outgoing) -> None:
        channel = self.channels.get(session.ticket.epoch)
        if channel is not None and channel.is_open:
            channel.carry(session)
        else:
            self.waiting.setdefault(session.ticket.epoch, []).append(session)

    def connect(self, epoch: bytes, peer: Node, scheme: str) -> bool:
        """Ends the wait of the sessions to that epoch, with an error where `peer` is a later start."""
        sessions = self.waiting.pop(epoch)
        if peer.epoch != epoch and self.checks_epochs:
            for session in sessions:
                session.end(PeerLost("the peer has restarted"))
            return False
        channel = self.channels[epoch] = self._link_to(peer, scheme)
        for session in sessions:
            channel.carry(session)
        return True

    def _link_to(self, peer: Node, scheme: str) -> SendChannel:
        near, far = QueuedLink(self, scheme), QueuedLink(peer, scheme)
        near.far, far.far = far, near
        packer, unpacker = self._packer(scheme), self._unpacker(scheme, peer)
        sent, received = PausingTally(), PausingTally()
        packer.pause = sent.pause = self.pause
        received.pause = peer.pause
        channel = near.owner = SendChannel("loopback", near, packer, sent, lambda: None)
        far.owner = ReceiveChannel(
            far, peer.inbox, unpacker, received, lambda: peer.unpackers.remove(unpacker)
        )
        peer.unpackers.append(unpacker)
        self.links.append(near)
        peer.links.append(far)
        return channel

    def _packer(self, scheme: str) -> AnyPacker:
        if scheme == "mapping":
            return PausingMappingPacker(self.pool.blocks, self._checksum, self.leases)
        if scheme == "direct":
            return PausingDirectPacker(self.pool.blocks, self._checksum)
        return PausingCopyingPacker(self.pool.blocks, self._checksum)

    def _unpacker(self, scheme: str, peer: Node) -> Unpacker:
        if scheme != "mapping":
            return CopyingUnpacker()
        proof = Proof(mac=b"", num_blocks=NUM_BLOCKS, block_bytes=BLOCK_BYTES)
        return MappingUnpacker(peer.pool.blocks, proof, self.pool.fd, self.leases.fd)

    def expire(self, now_s: float) -> None:
        self.outbox.expire(now_s)
        self.inbox.expire(now_s)

    def die(self) -> None:
        """As the system ends a process: none of its code runs, its descriptors and mappings go. What it has sent
        stays on the wire, and its pool with whoever maps it."""
        self.is_gone = True
        for link in self.links:
            link.is_closed = True
            link.far.wire.clear()
        for unpacker in self.unpackers:
            unpacker.close()
        self.free()

    def close_links(self) -> None:
        for link in self.links:
            link.close(PeerLost("the schedule is over"))

    def free(self) -> None:
        """Closes the descriptors."""
        if "leases" in vars(self):
            self.leases.close()
        self.pool.close()
