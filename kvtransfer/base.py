"""The contract of the hand-off, read in the order in which a hand-off happens.

    receiver                                              sender
    agent.expect(positions, block_ids) -> ticket
                        --- the ticket travels by any way --->
                                                          agent.open(ticket) -> session
                                                          session.push(positions, block_ids)   (non-blocking)
    bytes land in the receiver's own blocks
                        <--- one acknowledgement ---
    on_done(TransferResult)                               session's on_done(TransferResult)

Only the receiver ever writes its pool: a transport hands over bytes (or a mapping to read them from), and the
receiver's `Inbox` copies them under the ticket's generation. So fencing a transfer needs no help from the
peer: after `fence` returns, nothing more of that transfer can land, however late its bytes arrive.
The sender owns its blocks until the acknowledgement, or until its own `fence` returned: after either, the
transport reads them no more, or what it read is thrown away.

Positions count blocks within the request (0 is its first block); block ids index a worker's pool. Where the two
pools lay out their blocks differently, each side counts in its own, and the sender converts (see `plan`).
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from baton.kvtransfer.errors import TransferError as TransferError
from baton.kvtransfer.layout import KVLayout as KVLayout

EPOCH_BYTES = 8
TRANSFER_ID_BYTES = 16

BlockIds = Sequence[int] | NDArray[np.integer[Any]]
"""Positions or block ids; a numpy array of any integer type spares a conversion."""


@dataclass(frozen=True, slots=True)
class KVMemory:
    """A registered pool.

    blocks: uint8 [num_blocks, block_bytes], contiguous, one row a block, in host memory or on a CUDA device. fd:
    descriptor of the memory file (memfd) that begins with these bytes, where another process on this host may map
    it, else None.
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
    """A receiver's promise of memory, sealed by `ticket.seal` on its way to the sender.

    transfer_id: 16 random bytes that name the transfer on both sides. slot, generation: where the receiver
    keeps the promise, and the fencing token that every write has to carry. epoch: 8 random bytes made at each
    start of the receiver's agent. endpoints: every way in, fastest first. positions: int32, little-endian,
    ascending: the blocks of the request that are wanted, counted in the receiver's block size. tokens: of the
    whole request, None where the last block is full. ttl_s: what the promise lasts, counted by the receiver from
    the seal and by the sender from the opening, each on its own monotonic clock: clocks may differ and jump, and
    what comes after the receiver's end is refused. The receiver's block ids stay with the receiver.
    """

    transfer_id: bytes
    slot: int
    generation: int
    epoch: bytes
    endpoints: tuple[str, ...]
    layout: KVLayout
    block_bytes: int
    positions: bytes
    ttl_s: float
    tokens: int | None = None


class TransferState(enum.Enum):
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TransferResult:
    """How a transfer ended, the same shape on both sides. `blocks` and `bytes` count what landed here, or what
    left here. Times are seconds on this process's monotonic clock (0.0 where a stage was not reached). scheme: what
    carried the blocks; told to the sender alone, and empty where none had to leave."""

    transfer_id: bytes
    state: TransferState
    blocks: int
    bytes: int
    error: TransferError | None = None
    opened_at_s: float = 0.0
    first_byte_at_s: float = 0.0
    last_byte_at_s: float = 0.0
    done_at_s: float = 0.0
    scheme: str = ""


OnDone = Callable[[TransferResult], None]
"""Called exactly once a transfer, from the agent's I/O thread or from whoever called `fence` or `close`:
hand over and return at once, and take no lock that a caller of these may hold."""


class SendSession(ABC):
    """The sending half of one transfer. Methods may be called from any thread and never wait for the peer."""

    @abstractmethod
    def push(self, positions: BlockIds, block_ids: BlockIds) -> None:
        """Sends block_ids[i] of the local pool as block positions[i] of the request.

        Positions that the ticket does not want (the receiver has them cached) or that were pushed before are
        skipped. Between unequal block sizes a wanted block leaves once all blocks that hold its tokens were
        pushed. After the end of the transfer the call does nothing. The blocks must stay unchanged until
        `on_done` was called or `fence` returned. Raises BlockOutOfRange.
        """

    @abstractmethod
    def fence(self, reason: str) -> None:
        """Gives the transfer up, tells the receiver, and returns once the local blocks are read no more.

        A transfer that was still open ends with TransferAborted: `on_done` is called before this returns.
        Safe to call at any time, more than once.
        """
