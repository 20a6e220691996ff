"""The agents of a worker's ranks as one: a hand-off is done when every rank has its share.

A worker that decodes on n ranks promises n times, and its tickets travel as one bundle; a worker that prefills on
m ranks takes all of them up on each of its own. Who sends what to whom follows from the layouts alone (`plan`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.base import BlockIds, OnDone, SendSession, TransferResult, TransferState
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.stats import TransferStats


class Handoffs(Protocol):
    """What a scheduler needs of an agent, or of several; see `TransferAgent`."""

    def expect(
        self,
        positions: BlockIds,
        block_ids: BlockIds,
        ttl_s: float,
        on_done: OnDone,
        tokens: int | None = None,
    ) -> tuple[bytes, bytes]: ...

    def fence(self, transfer_id: bytes, reason: str) -> None: ...

    def open(self, sealed: bytes, on_done: OnDone, deadline_s: float | None = None) -> SendSession: ...

    def stats(self) -> TransferStats: ...


class TransferGroup:
    """Implements `Handoffs` over one member a rank, rank 0 first.

    `on_done` hears of the last member that is done, or of the first that fails. After a failure the others are
    still at work: their blocks are free only once `fence` has returned.
    """

    def __init__(self, members: Sequence[Handoffs]) -> None:
        self._members = members
        self._expected: dict[bytes, list[bytes]] = {}

    def expect(
        self,
        positions: BlockIds,
        block_ids: BlockIds,
        ttl_s: float,
        on_done: OnDone,
        tokens: int | None = None,
    ) -> tuple[bytes, bytes]:
        joint = _Joint(
            len(self._members), on_done, lambda: self._expected.pop(transfer_ids[0], None), is_held=True
        )
        transfer_ids: list[bytes] = []
        sealed: list[bytes] = []
        try:
            for member in self._members:
                transfer_id, ticket = member.expect(positions, block_ids, ttl_s, joint.add, tokens)
                transfer_ids.append(transfer_id)
                self._expected[transfer_ids[0]] = transfer_ids
                sealed.append(ticket)
        except TransferError as error:
            joint.give_up()
            for transfer_id in transfer_ids[:1]:
                self.fence(transfer_id, f"another rank could not promise: {error}")
            raise
        joint.tell()
        return transfer_ids[0], tickets.bundle(sealed)

    def fence(self, transfer_id: bytes, reason: str) -> None:
        """Every rank's share; see `TransferAgent.fence`."""
        transfer_ids = self._expected.pop(transfer_id, [])
        for member, member_id in zip(self._members, transfer_ids, strict=False):
            member.fence(member_id, reason)

    def open(self, sealed: bytes, on_done: OnDone, deadline_s: float | None = None) -> SendSession:
        bundle = tickets.unbundle(sealed)
        joint = _Joint(len(self._members) * len(bundle), on_done)
        session = _GroupSession([])
        try:
            for member in self._members:
                for ticket in bundle:
                    session.members.append(member.open(ticket, joint.add, deadline_s))
        except TransferError as error:
            joint.give_up()
            session.fence(f"another rank could not send: {error}")
            raise
        return session

    def stats(self) -> TransferStats:
        return TransferStats.total([member.stats() for member in self._members])


class _GroupSession(SendSession):
    def __init__(self, members: list[SendSession]) -> None:
        self.members = members

    def push(self, positions: BlockIds, block_ids: BlockIds) -> None:
        for member in self.members:
            member.push(positions, block_ids)

    def fence(self, reason: str) -> None:
        for member in self.members:
            member.fence(reason)


class _Joint:
    """Many results made one; `add` may be called from any thread."""

    def __init__(
        self,
        parts: int,
        on_done: OnDone,
        on_ended: Callable[[], object] = lambda: None,
        is_held: bool = False,
    ) -> None:
        """on_ended: called before an `on_done` that tells of success. is_held: success is told from `tell` on,
        for a hand-off of no blocks is done before its name is known."""
        self._parts = parts
        self._on_done = on_done
        self._on_ended = on_ended
        self._results: list[TransferResult] = []
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_held = is_held

    def tell(self) -> None:
        with self._lock:
            self._is_held = False
            is_done = not self._has_ended and len(self._results) == self._parts
            self._has_ended |= is_done
        if is_done:
            self._succeed()

    def give_up(self) -> None:
        """Nobody is told anything any more."""
        with self._lock:
            self._has_ended = True

    def add(self, result: TransferResult) -> None:
        with self._lock:
            if self._has_ended:
                return
            self._results.append(result)
            is_done = len(self._results) == self._parts and not self._is_held
            has_failed = result.state is TransferState.FAILED
            self._has_ended = is_done or has_failed
        if has_failed:
            self._on_done(result)
        elif is_done:
            self._succeed()

    def _succeed(self) -> None:
        self._on_ended()
        self._on_done(_sum_of(self._results))


def _sum_of(results: Sequence[TransferResult]) -> TransferResult:
    """Every share of a block counts its bytes; the block counts once."""
    return TransferResult(
        results[0].transfer_id,
        TransferState.DONE,
        max(result.blocks for result in results),
        sum(result.bytes for result in results),
        None,
        min(result.opened_at_s for result in results),
        min((result.first_byte_at_s for result in results if result.first_byte_at_s), default=0.0),
        max(result.last_byte_at_s for result in results),
        max(result.done_at_s for result in results),
        "+".join(sorted({result.scheme for result in results if result.scheme})),
    )
