"""The two ends of a link whose blocks travel beside it, through a process group.

    sender    channel packs -> courier sends          the `Push` goes over the link, with the payload's length
    receiver  link brings the `Push` -> courier receives into a free buffer -> I/O thread verifies and lands it

What follows a `Push` on the link waits for its payload, so that messages keep their order.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterable
from functools import partial
from threading import Semaphore

import msgspec
from torch import Tensor

from baton.kvtransfer.carrier import NO_PAYLOAD
from baton.kvtransfer.courier import Courier
from baton.kvtransfer.errors import MalformedFrame, PeerLost, TransferError, TransferTimeout
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.link import Link, LinkOwner, Outbound
from baton.kvtransfer.messages import Message, Push, Rendezvous
from baton.kvtransfer.pair_group import RECEIVER, SENDER, LinkStore, PairGroup
from baton.kvtransfer.staging import NOTHING_RECEIVED, STAGES, StagingPacker, StagingUnpacker
from baton.kvtransfer.transport import PREFLIGHT_S

MAX_WAITING = 1 << 14
"""Messages behind a payload: a sender within its bound of open transfers never has so many under way."""

MakeGroup = Callable[[LinkStore, int], PairGroup]
"""From a meeting point and this side's rank."""


class StagedEnd(LinkOwner):
    """What both ends have: a group, its courier, and `inner`, the channel that does all the rest."""

    def __init__(self, io: IOThread, link: Link, inner: LinkOwner, make_group: MakeGroup, rank: int) -> None:
        self._io = io
        self._link = link
        self._inner = inner
        self._store = LinkStore(link.send, PREFLIGHT_S)
        self._group = make_group(self._store, rank)
        self._is_closed = False
        self.courier = Courier(self._group, self._on_failed)

    def on_message(self, message: Message, payload: memoryview) -> None:
        if isinstance(message, Rendezvous):
            self._store.hear(message)
        else:
            self._inner.on_message(message, payload)

    def on_closed(self, error: TransferError) -> None:
        self._is_closed = True
        self.courier.stop()
        self._inner.on_closed(error)

    def next_frame(self) -> Outbound | None:
        return self._inner.next_frame()

    def _on_failed(self, error: TransferError) -> None:
        self._io.post(lambda: self._link.close(error))


class StagedSender(StagedEnd):
    def __init__(
        self, io: IOThread, link: Link, inner: LinkOwner, make_group: MakeGroup, packer: StagingPacker
    ) -> None:
        """packer: the one whose frames `inner` hands out."""
        super().__init__(io, link, inner, make_group, SENDER)
        self._packer = packer
        self._free_stages = Semaphore(STAGES)
        self._outcome: asyncio.Future[TransferError | None] = io.loop.create_future()
        self.courier.post(self._meet)

    async def met(self) -> None:
        """Returns once blocks can leave. Raises what closed the link before."""
        error = await self._outcome
        if error is not None:
            raise error

    def next_frame(self) -> Outbound | None:
        if not self._free_stages.acquire(blocking=False):
            return None
        frame = self._inner.next_frame()
        if frame is None or not isinstance(frame.message, Push):
            self._free_stages.release()
            return frame
        staged = self._packer.staged(frame.payload)
        self.courier.post(partial(self._send, staged))
        push = msgspec.structs.replace(frame.message, staged_bytes=staged.nbytes)
        return Outbound(push, NO_PAYLOAD)

    def _send(self, staged: Tensor) -> None:
        self._group.send(staged)
        self._free_stages.release()
        self._link.flush()

    def _meet(self) -> None:
        self._group.meet()
        self._io.post(lambda: self._settle(None))

    def on_closed(self, error: TransferError) -> None:
        self._settle(error)
        super().on_closed(error)

    def _settle(self, error: TransferError | None) -> None:
        if not self._outcome.done():
            self._outcome.set_result(error)


class StagedReceiver(StagedEnd):
    def __init__(
        self,
        io: IOThread,
        link: Link,
        inner: LinkOwner,
        make_group: MakeGroup,
        unpacker: StagingUnpacker,
        stall_timeout_s: float,
    ) -> None:
        """unpacker: the one that `inner` reads frames with."""
        super().__init__(io, link, inner, make_group, RECEIVER)
        self._unpacker = unpacker
        self._stall_timeout_s = stall_timeout_s
        self._is_meeting = False
        self._under_way = 0
        self._free: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
        for buffer in unpacker.buffers:
            self._free.put(buffer)

    def on_message(self, message: Message, payload: memoryview) -> None:
        if isinstance(message, Rendezvous) and not self._is_meeting:
            # Not before: until the sender has read `Ready`, it would take no other word.
            self._is_meeting = True
            self.courier.post(self._group.meet)
        if isinstance(message, Rendezvous) or not (isinstance(message, Push) or self._under_way):
            super().on_message(message, payload)
            return
        if self._under_way >= MAX_WAITING:
            raise MalformedFrame(f"{MAX_WAITING} messages behind a payload, the limit")
        self._under_way += 1
        if isinstance(message, Push):
            self._require_fitting(message)
            self.courier.post(partial(self._fetch, message))
        else:
            self.courier.post(partial(self._pass_on, message))

    def _require_fitting(self, push: Push) -> None:
        limit_bytes = self._unpacker.buffers[0].nbytes
        if not 0 < push.staged_bytes <= limit_bytes:
            raise MalformedFrame(f"a payload of {push.staged_bytes} bytes: 1 to {limit_bytes} are allowed")

    # --- on the courier's thread ---------------------------------------------------------------------------

    def _fetch(self, push: Push) -> None:
        try:
            buffer = self._free.get(timeout=self._stall_timeout_s)
        except queue.Empty:
            raise TransferTimeout(f"no buffer became free within {self._stall_timeout_s} s") from None
        if buffer is None:
            raise PeerLost("this link is closing")
        self._group.receive(buffer[: push.staged_bytes])
        self._io.post(lambda: self._land(push, buffer))

    def _pass_on(self, message: Message) -> None:
        self._io.post(lambda: self._deliver([(message, NOTHING_RECEIVED)]))

    # --- on the I/O thread ---------------------------------------------------------------------------------

    def _land(self, push: Push, buffer: Tensor) -> None:
        self._deliver(self._unpacker.messages(push, buffer[: push.staged_bytes]))
        self._free.put(buffer)

    def _deliver(self, messages: Iterable[tuple[Message, memoryview]]) -> None:
        self._under_way -= 1
        try:
            for message, payload in messages:
                if not self._is_closed:
                    self._inner.on_message(message, payload)
        except TransferError as error:
            self._link.close(error)

    def on_closed(self, error: TransferError) -> None:
        self._free.put(None)
        super().on_closed(error)
