"""The sender's end of a link: many sessions to one receiver, a frame of each in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from baton.kvtransfer.carrier import NO_PAYLOAD, Lease, Packer
from baton.kvtransfer.errors import TransferAborted, TransferError, from_peer
from baton.kvtransfer.link import Link, Outbound, unexpected
from baton.kvtransfer.messages import MAX_REASON_CHARS, Abort, Attach, Ended, Lend, Message, Push
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.stats import Tally


@dataclass(slots=True)
class _Carried:
    session: Outgoing
    lease: Lease
    is_attached: bool = False


class SendChannel:
    """A `LinkOwner` and, to its sessions, their `Carriage`."""

    def __init__(
        self, scheme: str, link: Link, packer: Packer, tally: Tally, on_lost: Callable[[], None]
    ) -> None:
        """on_lost: called once, when the link is gone."""
        self.scheme = scheme
        self._link = link
        self._packer = packer
        self._tally = tally
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._lost: TransferError | None = None
        self._carried: dict[int, _Carried] = {}
        self._ready: dict[int, None] = {}

    @property
    def is_open(self) -> bool:
        return self._lost is None

    # --- sessions come, have blocks, and go (any thread) ---------------------------------------------------

    def carry(self, session: Outgoing) -> None:
        """Takes a session on; it ends with an error where that is not possible any more."""
        ticket = session.ticket
        # Before a frame can leave, or a fence would not find the way to that frame's lease.
        session.bind(self)
        try:
            with self._lock:
                if self._lost is not None:
                    raise self._lost
                self._carried[ticket.generation] = _Carried(session, self._packer.grant())
                self._ready[ticket.generation] = None
        except TransferError as error:
            session.end(error)
            return
        if session.is_open:
            self._link.flush()
        else:  # it ended before it was in the books
            self.drop(session, TransferAborted("given up while connecting"))

    def offer(self, session: Outgoing) -> None:
        with self._lock:
            if session.ticket.generation in self._carried:
                self._ready[session.ticket.generation] = None
        self._link.flush()

    def drop(self, session: Outgoing, error: TransferError | None) -> None:
        ticket = session.ticket
        with self._lock:
            carried = self._carried.pop(ticket.generation, None)
            self._ready.pop(ticket.generation, None)
        if carried is not None:
            self._packer.revoke(carried.lease)
            self._link.release_payload()
        if error is not None:
            if carried is not None and not carried.is_attached:
                self._link.send(_attach(session))  # or the receiver would not take the sender's word
            name, reason = type(error).__name__, str(error)[:MAX_REASON_CHARS]
            self._link.send(Abort(slot=ticket.slot, generation=ticket.generation, error=name, reason=reason))

    # --- the link's side -----------------------------------------------------------------------------------

    def next_frame(self) -> Outbound | None:
        """In turn a frame of each session; a transfer's `Attach` goes this way as well, ahead of its blocks."""
        while True:
            with self._lock:
                generation = next(iter(self._ready), None)
                if generation is None:
                    return None
                carried = self._carried[generation]
                if not carried.is_attached:
                    carried.is_attached = True
                    return Outbound(_attach(carried.session), NO_PAYLOAD)
                del self._ready[generation]
            frame = carried.session.next_frame(self._packer, carried.lease)
            if frame is not None:
                self._count(carried.session, frame)
                with self._lock:
                    if generation in self._carried:
                        self._ready[generation] = None
                return frame

    def _count(self, session: Outgoing, frame: Outbound) -> None:
        if isinstance(frame.message, Push | Lend):
            blocks = len(frame.message.positions) // 4
            self._tally.add(blocks, blocks * session.row_bytes)

    def on_message(self, message: Message, payload: memoryview) -> None:
        if not isinstance(message, Ended):
            raise unexpected(message)
        carried = self._carried.get(message.generation)
        if carried is not None:
            carried.session.end(from_peer(message.error, message.reason) if message.error else None)

    def on_closed(self, error: TransferError) -> None:
        self._on_lost()
        with self._lock:
            self._lost = error
            sessions = [carried.session for carried in self._carried.values()]
        for session in sessions:
            session.end(error)


def _attach(session: Outgoing) -> Attach:
    ticket, heads = session.ticket, session.heads
    return Attach(slot=ticket.slot, generation=ticket.generation, first_head=heads.start, heads=len(heads))
