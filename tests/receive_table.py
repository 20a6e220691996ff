"""A receive table over a small pool of zeros, and what senders bring to it."""

from __future__ import annotations

import numpy as np
from transfer_ends import Outcome, stamp
from xxhash import xxh3_64_intdigest

from baton.kvtransfer.block_array import BlockArray, Blocks
from baton.kvtransfer.carrier import Arrival
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.incoming import Incoming
from baton.kvtransfer.stats import Tally

NUM_BLOCKS, BLOCK_BYTES = 12, 40


class FakeSender:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, TransferError | None]] = []

    def tell_ended(self, generation: int, error: TransferError | None) -> None:
        self.told.append((generation, error))


class Table:
    """An inbox over a pool of zeros."""

    def __init__(self) -> None:
        self.memory = np.zeros(NUM_BLOCKS * BLOCK_BYTES, np.uint8)
        self.blocks = BlockArray(self.memory, BLOCK_BYTES)
        self.alarms: list[float] = []
        self.inbox = Inbox(self.blocks, checksum=True, max_open=4, set_alarm=self.alarms.append)
        self.sender = FakeSender()

    def expect(
        self, positions: list[int], block_ids: list[int], ttl_s: float = 60.0
    ) -> tuple[Incoming, Outcome]:
        outcome = Outcome()
        incoming = self.inbox.expect(positions, block_ids, ttl_s, outcome)
        self.inbox.attach(incoming.slot.index, incoming.generation, self.sender)
        return incoming, outcome

    def write(self, incoming: Incoming, positions: list[int], owner: int = 1) -> int:
        """The count of blocks that landed."""
        return self.send(incoming, make_arrival(positions, owner), self.sender)

    def send(self, incoming: Incoming, arrival: Arrival, sender: FakeSender) -> int:
        tally = Tally()
        self.inbox.write(incoming.slot.index, incoming.generation, arrival, sender, tally)
        return tally.blocks

    def block(self, block_id: int) -> bytes:
        return self.memory[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES].tobytes()


def make_arrival(positions: list[int], owner: int) -> Arrival:
    content = b"".join(stamp(owner, position, BLOCK_BYTES) for position in positions)
    rows: Blocks = np.frombuffer(content, np.dtype((np.void, BLOCK_BYTES)))
    digests = np.array([xxh3_64_intdigest(content)], np.uint64)
    return Arrival(np.array(positions, np.int64), rows, digests)
