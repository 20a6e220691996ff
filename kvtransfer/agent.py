"""What a worker uses: one agent for its pool, receiving and sending at once.

agent = TransferAgent(memory, layout, secret)
transfer_id, ticket = agent.expect(positions, block_ids, ttl_s, on_done)     # on the receiver
session = agent.open(ticket, on_done)                                        # on the sender
session.push(positions, block_ids)
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence

import numpy as np

from baton.kvtransfer import ticket as tickets
from baton.kvtransfer.alarm import Alarm
from baton.kvtransfer.base import (
    EPOCH_BYTES,
    TRANSFER_ID_BYTES,
    BlockIds,
    KVLayout,
    KVMemory,
    OnDone,
    SendSession,
    Ticket,
    TransferResult,
    TransferState,
)
from baton.kvtransfer.converting import converter_for
from baton.kvtransfer.device_blocks import block_array_of
from baton.kvtransfer.errors import (
    SchemeUnavailable,
    TransferAborted,
)
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.outbox import Outbox
from baton.kvtransfer.peers import Peers
from baton.kvtransfer.schemes import DEFAULT_SCHEMES, transport_class
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.stats import TransferStats
from baton.kvtransfer.transport import PREFLIGHT_S, LocalWorker, Transport


class TransferAgent:
    """All methods may be called from any thread."""

    def __init__(
        self,
        memory: KVMemory,
        layout: KVLayout,
        secret: bytes,
        schemes: Sequence[str] = DEFAULT_SCHEMES,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        checksum: bool = True,
        max_open: int = 4096,
        stall_timeout_s: float = 5.0,
    ) -> None:
        """Listens on every scheme that this memory allows, in the order given, which is taken as fastest first.

        host, port: where `tcp`, `gloo` or `nccl` listens, `ucx` 100 above (0: any free port). checksum: verify all
        bytes end to end (XXH3-64); both sides have to agree. max_open: bound on transfers in each direction.
        stall_timeout_s: a peer's host that acknowledges nothing for so long is taken for dead.

        Raises UnknownScheme, and SchemeUnavailable where a scheme given alone, or every one of several, cannot
        work here.
        """
        classes = {scheme: transport_class(scheme) for scheme in schemes}
        self.layout = layout
        self.epoch = secrets.token_bytes(EPOCH_BYTES)
        self.unavailable: dict[str, str] = {}
        self._secret = secret
        self._checksum = checksum
        self._closing = threading.Lock()
        self._is_closed = False
        self._blocks = blocks = block_array_of(memory)
        self._io = io = IOThread(f"baton-kv-{self.epoch.hex()[:8]}")
        self._alarm = Alarm(io, self._expire)
        self._outbox = Outbox(max_open)
        self._inbox = inbox = Inbox(blocks, checksum, max_open, self._alarm.set, layout)
        self._transports: dict[str, Transport] = {}
        self._peers = Peers(io, self._transports)
        worker = LocalWorker(
            io, memory.fd, blocks, inbox, secret, self.epoch, checksum, host, port, stall_timeout_s
        )
        try:
            self.endpoints = self._listen(classes, worker)
        except BaseException:
            self.close()
            raise

    def _listen(self, classes: dict[str, type[Transport]], worker: LocalWorker) -> tuple[str, ...]:
        endpoints = []
        for scheme, transport in classes.items():
            try:
                self._transports[scheme] = transport(worker)
                endpoints.append(self._io.ask(self._transports[scheme].listen))
            except SchemeUnavailable as error:
                unusable = self._transports.pop(scheme, None)
                if unusable is not None:
                    self._io.ask(unusable.close)
                self.unavailable[scheme] = str(error)
        if not endpoints:
            reasons = "; ".join(f"{scheme}: {reason}" for scheme, reason in self.unavailable.items())
            raise SchemeUnavailable(reasons or "no scheme was asked for")
        return tuple(endpoints)

    @property
    def schemes(self) -> tuple[str, ...]:
        """Those that are open here, fastest first; `unavailable` says why others are not."""
        return tuple(self._transports)

    # --- receiving -----------------------------------------------------------------------------------------

    def expect(
        self,
        positions: BlockIds,
        block_ids: BlockIds,
        ttl_s: float,
        on_done: OnDone,
        tokens: int | None = None,
    ) -> tuple[bytes, bytes]:
        """Promises block_ids[i] of the local pool to block positions[i] of a request, for `ttl_s`.

        tokens: of the whole request, None where its last block is full.

        Returns the transfer id and the sealed ticket for the sender. The blocks belong to the transfer until
        `on_done` was called or `fence` returned. With no positions the transfer is done at once. Raises
        BlockOutOfRange, TooManyTransfers, and TransferAborted once the agent is closed.
        """
        if len(positions) == len(block_ids) == 0:
            return self._expect_nothing(ttl_s, on_done)
        incoming = self._inbox.expect(positions, block_ids, ttl_s, on_done)
        wanted = incoming.positions.astype(np.int32).tobytes()
        ticket = self._ticket(
            incoming.transfer_id, incoming.slot.index, incoming.generation, wanted, ttl_s, tokens
        )
        return incoming.transfer_id, ticket

    def _expect_nothing(self, ttl_s: float, on_done: OnDone) -> tuple[bytes, bytes]:
        if self._is_closed:
            raise TransferAborted("this agent is closed")
        transfer_id, now_s = secrets.token_bytes(TRANSFER_ID_BYTES), time.monotonic()
        result = TransferResult(transfer_id, TransferState.DONE, 0, 0, None, now_s, 0.0, 0.0, now_s)
        self._io.post(lambda: on_done(result))
        return transfer_id, self._ticket(transfer_id, 0, 0, b"", ttl_s)

    def _ticket(
        self,
        transfer_id: bytes,
        slot: int,
        generation: int,
        positions: bytes,
        ttl_s: float,
        tokens: int | None = None,
    ) -> bytes:
        promise = Ticket(
            transfer_id=transfer_id,
            slot=slot,
            generation=generation,
            epoch=self.epoch,
            endpoints=self.endpoints,
            layout=self.layout,
            block_bytes=self._blocks.block_bytes,
            positions=positions,
            ttl_s=ttl_s,
            tokens=tokens,
        )
        return tickets.seal(promise, self._secret)

    def fence(self, transfer_id: bytes, reason: str) -> None:
        """Gives an expected transfer up: after the return nothing of it can land any more.

        A transfer that was open ends with TransferAborted: `on_done` is called before this returns, and the
        sender is told. One that had ended, or was never known, is left alone.
        """
        self._inbox.fence(transfer_id, reason)

    # --- sending -------------------------------------------------------------------------------------------

    def open(self, sealed: bytes, on_done: OnDone, deadline_s: float | None = None) -> SendSession:
        """Takes up a ticket; the blocks may be pushed at once. Connecting, where there is no connection yet,
        goes on in the background: what fails there, or later, comes through `on_done`.

        deadline_s: monotonic time by which the peer has to be reached (never later than 5 s from now). Raises
        BadTicket, LayoutMismatch, TooManyTransfers, and TransferAborted once the agent is closed.
        """
        ticket = tickets.open_sealed(sealed, self._secret)
        converter = converter_for(ticket, self._blocks, self.layout, self._checksum)
        session = Outgoing(ticket, self._blocks, on_done, self._outbox.remove, converter)
        self._outbox.add(session)
        if not ticket.positions or (converter is not None and not converter.heads):
            self._io.post(lambda: session.end(None))
            return session
        self._alarm.set(session.expires_at_s)
        latest_s = time.monotonic() + PREFLIGHT_S
        self._peers.route(session, latest_s if deadline_s is None else min(deadline_s, latest_s))
        return session

    # --- both ----------------------------------------------------------------------------------------------

    def stats(self) -> TransferStats:
        by_scheme = {scheme: transport.stats() for scheme, transport in self._transports.items()}
        totals = by_scheme.values()
        return TransferStats(
            blocks_sent=sum(scheme.blocks_sent for scheme in totals),
            bytes_sent=sum(scheme.bytes_sent for scheme in totals),
            blocks_received=sum(scheme.blocks_received for scheme in totals),
            bytes_received=sum(scheme.bytes_received for scheme in totals),
            duplicate_blocks=self._inbox.duplicate_blocks,
            open_sends=len(self._outbox),
            open_receives=len(self._inbox),
            refused=dict(self._inbox.refused),
            by_scheme=by_scheme,
        )

    def close(self) -> None:
        """Ends every transfer with TransferAborted, tells the peers, frees all descriptors and mappings, lets go
        of the pool's memory, and joins the I/O thread. Safe to call twice; not from `on_done`."""
        assert not self._io.is_current, "an agent cannot be closed from its own thread"
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._outbox.close("the sending agent is closing")
        self._inbox.close("the receiving agent is closing")
        self._io.ask(self._close_transports)
        self._io.close()
        self._blocks.release()

    def _close_transports(self) -> None:
        self._peers.close()
        for transport in self._transports.values():
            transport.close()

    def _expire(self, now_s: float) -> float | None:
        """Ends what is overdue on either side; the earliest deadline left."""
        deadlines_s = (self._outbox.expire(now_s), self._inbox.expire(now_s))
        return min((at_s for at_s in deadlines_s if at_s is not None), default=None)
