"""The contract of the hand-off, read in the order in which a hand-off happens.

    receiver                                              sender
    agent.expect(positions, block_ids) -> ticket
                        --- the ticket travels by any way --->
                                                          agent.open(ticket) -> session
                                                          session.push(positions, block_ids)   (non-blocking)
    bytes land in the receiver's own blocks
                        <--- acknowledgements ---
    on_done(TransferResult)                               session.on_done(TransferResult)

Only the receiver ever writes its pool: a transport hands over bytes (or a mapping to read them from), and the
receiver's `Inbox` copies them under the ticket's generation. So fencing a transfer needs no help from the
peer: after `fence` returns, nothing more of that transfer can land, however late its bytes arrive.
The sender owns its blocks until the acknowledgement, or until its own `fence` returned: after either, the
transport reads them no more, or whatever it read is refused by generation and checksum.

Positions count blocks within the request (0 is its first block); block ids index a worker's pool.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch


class TransferError(Exception):
    """Root of what can go wrong between two pools; the message says which transfer, field and value."""


class UnknownScheme(TransferError):
    """No transport has this URI scheme; the message lists those that exist."""


class BadTicket(TransferError):
    """The ticket is malformed, wrongly signed, expired, or used before."""


class LayoutMismatch(TransferError):
    """The two pools lay out a block differently; the message names the field and both values."""


class StaleGeneration(TransferError):
    """A write carries a generation that the receiver has fenced off."""


class ChecksumMismatch(TransferError):
    """A block's bytes are not what the sender had."""


class PeerLost(TransferError):
    """The peer's process or connection is gone."""


class TransferTimeout(TransferError):
    """The hand-off did not finish before the ticket's expiry."""


class TransferAborted(TransferError):
    """One side gave the transfer up on purpose (cancel, disconnect, drain)."""


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What has to agree between two pools before a block of one means anything in the other.

    model: fingerprint of the weights and configuration. dtype: torch's name, as "bfloat16".
    Sizes are counts; `block_size` is tokens a block, `kv_heads` those of this rank.
    """

    model: str
    dtype: str
    block_size: int
    layers: int
    kv_heads: int
    head_dim: int
    tp_degree: int = 1
    tp_rank: int = 0
    weight_version: str = ""

    def require_equal(self, other: KVLayout) -> None:
        """Raises LayoutMismatch naming the first field that differs."""
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise LayoutMismatch(f"KV layout differs in {name}: {mine!r} here, {theirs!r} at the peer")


@dataclass(frozen=True, slots=True)
class KVMemory:
    """A registered pool.

    blocks: uint8 [num_blocks, block_bytes], contiguous, one row a block. fd: descriptor of the memory file
    behind it where another process on this host may map it, else None.
    """

    blocks: torch.Tensor
    fd: int | None = None

    @property
    def num_blocks(self) -> int:
        return self.blocks.shape[0]

    @property
    def block_bytes(self) -> int:
        return self.blocks.shape[1]


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A receiver's promise of memory, sealed by `ticket.seal` (HMAC-SHA256) on its way to the sender.

    transfer_id: 16 random bytes. generation: the fencing token of the reservation. epoch: 8 random bytes made
    at each start of the receiver's process. endpoints: every way in, fastest first. positions[i] of the
    request goes to block_ids[i] of the receiver's pool. expires_at_s: Unix time.
    """

    transfer_id: bytes
    generation: int
    epoch: bytes
    endpoints: tuple[str, ...]
    layout: KVLayout
    positions: tuple[int, ...]
    block_ids: tuple[int, ...]
    expires_at_s: float


class TransferState(enum.Enum):
    OPEN = "open"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """How a transfer ended, the same shape on both sides. Times are seconds on this process's monotonic
    clock (0.0 where a stage was not reached)."""

    transfer_id: bytes
    state: TransferState
    blocks: int
    bytes: int
    error: TransferError | None = None
    opened_at_s: float = 0.0
    first_byte_at_s: float = 0.0
    last_byte_at_s: float = 0.0
    done_at_s: float = 0.0


OnDone = Callable[[TransferResult], None]
"""Called exactly once a transfer, from the transport's own thread: hand over and return at once."""


class SendSession(ABC):
    """The sending half of one transfer. Methods may be called from any thread and never block on the peer,
    except `fence`, which waits only for this process's own I/O thread."""

    ticket: Ticket

    @abstractmethod
    def push(self, positions: Sequence[int], block_ids: Sequence[int]) -> None:
        """Sends block_ids[i] of the local pool as block positions[i] of the request.

        Positions that the ticket does not want are skipped (the receiver has them cached). The blocks must
        stay unchanged until `on_done` was called or `fence` returned.
        """

    @abstractmethod
    def fence(self, reason: str) -> None:
        """Gives the transfer up: tells the receiver and returns once the local blocks are read no more
        (bytes still under way are refused by the receiver). Safe to call at any time, more than once."""


class Channel(ABC):
    """A transport's connection to one peer; carries the sessions of many transfers."""

    @abstractmethod
    def open(self, ticket: Ticket, on_done: OnDone) -> SendSession:
        """Starts the sending half of `ticket`."""

    @abstractmethod
    def close(self) -> None:
        """Ends all sessions of this channel with PeerLost and frees what it held."""


class Transport(ABC):
    """One way between two pools, chosen by URI scheme."""

    scheme: ClassVar[str]

    @abstractmethod
    def listen(self) -> str:
        """Starts the receiving half; returns the endpoint for tickets, as "shm://…" or "tcp://host:port"."""

    @abstractmethod
    def connect(self, endpoint: str, epoch: bytes, deadline_s: float) -> Channel:
        """A channel to the process behind `endpoint` whose start had `epoch`; channels are reused.

        Raises PeerLost where nothing answers before `deadline_s` (monotonic clock) or another epoch does.
        """

    @abstractmethod
    def close(self) -> None:
        """Stops listening, closes all channels, frees all descriptors, joins the I/O thread."""
