"""The sender's end of a link: many sessions to one receiver, a frame of each in turn."""

from __future__ import annotations

import threading
from collections.abc import Callable

from baton.kvtransfer.carrier import Lease, Packer
from baton.kvtransfer.errors import TransferAborted, TransferError, from_peer
from baton.kvtransfer.link import Link, PushFrame, unexpected
from baton.kvtransfer.messages import MAX_REASON_CHARS, Abort, Attach, Ended, Message
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.stats import Tally


class SendChannel:
    """A `LinkOwner` and, to its sessions, their `Carriage`."""

    def __init__(self, link: Link, packer: Packer, tally: Tally, on_lost: Callable[[], None]) -> None:
        """on_lost: called once, when the link is gone."""
        self._link = link
        self._packer = packer
        self._tally = tally
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._lost: TransferError | None = None
        self._carried: dict[int, tuple[Outgoing, Lease]] = {}
        self._ready: dict[int, None] = {}

    @property
    def is_open(self) -> bool:
        return self._lost is None

    # --- sessions come, have blocks, and go (any thread) ---------------------------------------------------

    def carry(self, session: Outgoing) -> None:
        """Takes a session on; it ends with an error where that is not possible any more."""
        ticket = session.ticket
        try:
            with self._lock:
                if self._lost is not None:
                    raise self._lost
                self._carried[ticket.generation] = (session, self._packer.grant())
        except TransferError as error:
            session.end(error)
            return
        heads = session.heads
        self._link.send(
            Attach(
                slot=ticket.slot,
                generation=ticket.generation,
                first_head=heads.start,
                heads=len(heads),
            )
        )
        session.bind(self)
        if not session.is_open:  # it ended before it knew of this channel
            self.drop(session, TransferAborted("given up while connecting"))

    def offer(self, session: Outgoing) -> None:
        with self._lock:
            if session.ticket.generation in self._carried:
                self._ready[session.ticket.generation] = None
        self._link.flush()

    def drop(self, session: Outgoing, error: TransferError | None) -> None:
        ticket = session.ticket
        with self._lock:
            _, lease = self._carried.pop(ticket.generation, (None, None))
            self._ready.pop(ticket.generation, None)
        if lease is not None:
            self._packer.revoke(lease)
        if error is not None:
            name, reason = type(error).__name__, str(error)[:MAX_REASON_CHARS]
            self._link.send(Abort(slot=ticket.slot, generation=ticket.generation, error=name, reason=reason))

    # --- the link's side -----------------------------------------------------------------------------------

    def next_frame(self) -> PushFrame | None:
        while True:
            with self._lock:
                generation = next(iter(self._ready), None)
                if generation is None:
                    return None
                del self._ready[generation]
                session, lease = self._carried[generation]
            frame = session.next_frame(self._packer, lease)
            if frame is not None:
                blocks = len(frame.push.positions) // 4
                self._tally.add(blocks, blocks * session.row_bytes)
                with self._lock:
                    if generation in self._carried:
                        self._ready[generation] = None
                return frame

    def on_message(self, message: Message, payload: memoryview) -> None:
        if not isinstance(message, Ended):
            raise unexpected(message)
        session, _ = self._carried.get(message.generation, (None, None))
        if session is not None:
            session.end(from_peer(message.error, message.reason) if message.error else None)

    def on_closed(self, error: TransferError) -> None:
        self._on_lost()
        with self._lock:
            self._lost = error
            sessions = [session for session, _ in self._carried.values()]
        for session in sessions:
            session.end(error)
