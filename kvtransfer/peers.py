"""Which channel a session takes: one to each peer, made on first use and remade when it is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping

from baton.kvtransfer.errors import PeerLost, SchemeUnavailable, TransferError
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.schemes import scheme_of
from baton.kvtransfer.sending import SendChannel
from baton.kvtransfer.session import Outgoing
from baton.kvtransfer.transport import Transport


class Peers:
    """Peers are known by epoch, so a restarted one is a new one."""

    def __init__(self, io: IOThread, transports: Mapping[str, Transport]) -> None:
        self._io = io
        self._transports = transports
        self._lock = threading.Lock()
        self._channels: dict[bytes, SendChannel] = {}
        self._waiting: dict[bytes, list[Outgoing]] = {}
        self._dialling: set[asyncio.Task[None]] = set()

    def route(self, session: Outgoing, deadline_s: float) -> None:
        """From any thread: binds `session` to its peer's channel, at once where there is one, else as soon as
        the peer was reached; by `deadline_s` (monotonic clock) it ends with an error instead."""
        epoch = session.ticket.epoch
        with self._lock:
            channel = self._channels.get(epoch)
            if channel is None or not channel.is_open:
                channel = None
                waiting = self._waiting.setdefault(epoch, [])
                waiting.append(session)
                is_first = len(waiting) == 1
        if channel is not None:
            channel.carry(session)
        elif is_first:
            self._io.post(lambda: self._start(epoch, session.ticket.endpoints, deadline_s))

    def close(self) -> None:
        """On the I/O thread: gives up all attempts; their sessions are the caller's to end."""
        for task in self._dialling:
            task.cancel()

    def _start(self, epoch: bytes, endpoints: tuple[str, ...], deadline_s: float) -> None:
        task = self._io.loop.create_task(self._dial(epoch, endpoints, deadline_s))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, epoch: bytes, endpoints: tuple[str, ...], deadline_s: float) -> None:
        try:
            channel = await self._reach(epoch, endpoints, deadline_s)
        except TransferError as error:
            for session in self._take_waiting(epoch, None):
                session.end(error)
            return
        for session in self._take_waiting(epoch, channel):
            channel.carry(session)

    async def _reach(self, epoch: bytes, endpoints: tuple[str, ...], deadline_s: float) -> SendChannel:
        """Tries the endpoints in the receiver's order; the error names each and why it failed."""
        failures: list[tuple[str, TransferError]] = []
        try:
            async with asyncio.timeout_at(deadline_s):
                for endpoint in endpoints:
                    transport = self._transports.get(scheme_of(endpoint))
                    if transport is None:
                        continue
                    try:
                        return await transport.connect(endpoint, epoch)
                    except TransferError as error:
                        failures.append((endpoint, error))
        except TimeoutError:
            late = PeerLost(f"no answer by the deadline, {time.monotonic() - deadline_s:.3f} s ago")
            failures.append((endpoint, late))
        if not failures:
            offered = ", ".join(endpoints) or "nothing"
            raise SchemeUnavailable(f"the peer offers {offered}; open here: {', '.join(self._transports)}")
        kind = type(failures[-1][1])
        raise kind("; ".join(f"{endpoint}: {error}" for endpoint, error in failures)) from failures[-1][1]

    def _take_waiting(self, epoch: bytes, channel: SendChannel | None) -> list[Outgoing]:
        with self._lock:
            self._channels = {known: other for known, other in self._channels.items() if other.is_open}
            if channel is not None:
                self._channels[epoch] = channel
            return self._waiting.pop(epoch, [])
