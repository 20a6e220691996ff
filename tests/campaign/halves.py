"""The two halves of a hand-off as the workers that own the blocks see them, and what each has to find at its end.

A worker gives its blocks to the next request at the earliest moment that the contract allows: when `on_done` is
called or `fence` has returned, whichever comes first.
"""

from __future__ import annotations

from _thread import LockType

from campaign.node import Node
from campaign.pool import Promise, Violation, describe, stamp

from baton.kvtransfer.base import TransferResult, TransferState
from baton.kvtransfer.session import Outgoing


class Receiving:
    """Blocks that a request `owner` waits for."""

    def __init__(
        self, node: Node, owner: int, positions: list[int], targets: list[int], ttl_s: float
    ) -> None:
        """targets: blocks that are `owner`'s to give. Raises what `Inbox.expect` does."""
        self.node = node
        self.owner = owner
        self.positions = positions
        self.targets = targets
        self.result: TransferResult | None = None
        self._is_released = False
        self._expect(ttl_s)

    def _expect(self, ttl_s: float) -> None:
        for position, block_id in zip(self.positions, self.targets, strict=True):
            promise = Promise(stamp(self.owner, position), lambda: self.would_wait)
            self.node.pool.promise(block_id, promise)
        self.incoming, self.ticket = self.node.expect(self.positions, self.targets, ttl_s, self._on_done)

    @property
    def name(self) -> str:
        return f"receiving {self.owner}"

    @property
    def is_open(self) -> bool:
        return self.result is None and not self.node.is_gone

    @property
    def is_promised(self) -> bool:
        """Whether the blocks are promised still: not when the transfer is about to call `on_done`."""
        return not self.node.is_gone and self.incoming.slot.tenant is self.incoming

    @property
    def is_attached(self) -> bool:
        return bool(self.incoming.landings)

    @property
    def would_wait(self) -> bool:
        """Whether `fence` would wait for another thread just now."""
        return self.incoming.slot.lock.locked()

    def fence(self) -> None:
        self.node.inbox.fence(self.incoming.transfer_id, "the client went away")
        self._release()

    def _on_done(self, result: TransferResult) -> None:
        if self.result is not None:
            raise Violation("ending", f"{self.name} ended twice")
        self.result = result
        self.node.pool.check()
        if result.state is TransferState.DONE and not self._is_released:
            self._require_all_landed()
        self._release()

    def _require_all_landed(self) -> None:
        for position, block_id in zip(self.positions, self.targets, strict=True):
            content = self.node.pool.read(block_id)
            if content != stamp(self.owner, position):
                raise Violation(
                    "corruption", f"{self.name} is done, its position {position} holds {describe(content)}"
                )

    def _release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self.node.pool.check()
            self.node.pool.withdraw(self.targets)
            self.node.pool.give_back(self.targets)
            self.node.pool.blocks.pause()


class CarelessReceiving(Receiving):
    """Asks for blocks that are not its own, as another transfer was promised them already."""

    def _expect(self, ttl_s: float) -> None:
        self._is_released = True
        self.incoming, self.ticket = self.node.expect(self.positions, self.targets, ttl_s, self._on_done)


class Sending:
    """A request `owner` that has computed the blocks a ticket asks for."""

    def __init__(self, node: Node, receiving: Receiving, owner: int) -> None:
        """Raises BadTicket and whatever else `TransferAgent.open` does; `route` has to follow."""
        self.node = node
        self.receiving = receiving
        self.owner = owner
        self.result: TransferResult | None = None
        self._is_released = False
        self.sources = node.pool.take(len(receiving.positions))
        self.unpushed = list(zip(receiving.positions, self.sources, strict=True))
        for position, block_id in self.unpushed:
            node.pool.write(block_id, stamp(owner, position))
        self.session: Outgoing = node.take_up(receiving.ticket, self._on_done)
        self._is_callers = False

    @property
    def name(self) -> str:
        return f"sending {self.owner}"

    @property
    def is_open(self) -> bool:
        return self.result is None and not self.node.is_gone

    @property
    def would_wait(self) -> bool:
        """Whether a call of the session would wait for another thread just now."""
        is_held = any(isinstance(lock, LockType) and lock.locked() for lock in vars(self.session).values())
        return is_held or any(link.would_wait for link in self.node.links)

    @property
    def is_usable(self) -> bool:
        """Whether its worker has the session in hand: `TransferAgent.open` has returned."""
        return self._is_callers and not self.node.is_gone

    def route(self) -> None:
        self.node.route(self.session)
        self._is_callers = True

    def push(self, count: int) -> None:
        given, self.unpushed = self.unpushed[:count], self.unpushed[count:]
        self.session.push([position for position, _ in given], [block_id for _, block_id in given])

    def fence(self) -> None:
        self.session.fence("the prompt was cancelled")
        self._release()

    def _on_done(self, result: TransferResult) -> None:
        if self.result is not None:
            raise Violation("ending", f"{self.name} ended twice")
        self.result = result
        self._release()

    def _release(self) -> None:
        if not self._is_released:
            self._is_released = True
            self.unpushed = []
            self.node.pool.give_back(self.sources)
            self.node.pool.blocks.pause()
