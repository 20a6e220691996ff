"""The sending sessions of one worker: how many may be open, until when, and from which tickets.

The counterpart of `inbox`; what a session does is its own affair (`session`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from baton.kvtransfer.errors import BadTicket, TooManyTransfers, TransferAborted, TransferTimeout
from baton.kvtransfer.session import Outgoing

MAX_USED_TICKETS = 1 << 13
"""Tickets remembered against replay; an older one is refused by its receiver, where its generation is gone."""


class Outbox:
    """All methods may be called from any thread."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._lock = threading.Lock()
        self._is_closed = False
        self._sessions: dict[bytes, Outgoing] = {}
        self._used: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: Outgoing) -> None:
        """Raises BadTicket for a ticket used before, TooManyTransfers, and TransferAborted after `close`."""
        transfer_id = session.ticket.transfer_id
        with self._lock:
            if self._is_closed:
                raise TransferAborted("this agent is closed")
            if transfer_id in self._used or transfer_id in self._sessions:
                raise BadTicket(f"transfer {transfer_id.hex()}: the ticket was used before")
            if len(self._sessions) >= self._max_open:
                raise TooManyTransfers(f"{self._max_open} sending sessions are open, the limit")
            self._sessions[transfer_id] = session
            self._used[transfer_id] = None
            if len(self._used) > MAX_USED_TICKETS:
                self._used.popitem(last=False)

    def remove(self, session: Outgoing) -> None:
        with self._lock:
            del self._sessions[session.ticket.transfer_id]

    def expire(self, now_s: float) -> float | None:
        """Ends what is overdue; the earliest deadline left."""
        deadlines_s = []
        for session in self._all_open():
            if session.expires_at_s > now_s:
                deadlines_s.append(session.expires_at_s)
                continue
            late = TransferTimeout(f"transfer {session.ticket.transfer_id.hex()}: not acknowledged in time")
            session.end(late, tell_receiver=True)
        return min(deadlines_s, default=None)

    def close(self, reason: str) -> None:
        with self._lock:
            self._is_closed = True
        for session in self._all_open():
            session.fence(reason)

    def _all_open(self) -> list[Outgoing]:
        with self._lock:
            return list(self._sessions.values())
