"""One way between two pools, chosen by URI scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from baton.kvtransfer.block_array import BlockArray
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.stats import SchemeStats, Tally

PREFLIGHT_S = 5.0
"""Longest that reaching a peer and proving the secret may take, on either side."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalWorker:
    """What an agent lends to its transports.

    pool_fd: the pool's memory file, where it has one. host: numeric address or name to listen on and
    advertise; port: 0 for any free one. stall_timeout_s: a peer host that acknowledges no byte for so long is
    taken for dead.
    """

    io: IOThread
    pool_fd: int | None
    blocks: BlockArray
    inbox: Inbox
    secret: bytes
    epoch: bytes
    checksum: bool
    host: str
    port: int
    stall_timeout_s: float


class Transport(ABC):
    """All methods run on the agent's I/O thread."""

    scheme: ClassVar[str]

    def __init__(self, worker: LocalWorker) -> None:
        """Raises SchemeUnavailable where the scheme cannot work with this worker's memory."""
        self.worker = worker
        self.sent = Tally()
        self.received = Tally()

    @abstractmethod
    def listen(self) -> str:
        """Starts the receiving half; returns the endpoint for tickets, as "shm://…" or "tcp://host:port".

        Raises SchemeUnavailable naming what is in the way.
        """

    @abstractmethod
    async def connect(self, endpoint: str, epoch: bytes) -> SendChannel:
        """A fresh channel to the agent behind `endpoint` whose start had `epoch`.

        Raises PeerLost where nobody, or another epoch, answers; Unauthenticated; whatever the peer refused
        with. Cancelling it frees all it held; the caller sets the deadline.
        """

    @abstractmethod
    def close(self) -> None:
        """Stops listening, closes all links (their transfers end with PeerLost), frees all descriptors."""

    def stats(self) -> SchemeStats:
        return SchemeStats(self.sent.blocks, self.sent.bytes, self.received.blocks, self.received.bytes)
