"""The receiver's end of a link: what one sender pushes goes to the inbox, and each end is told back."""

from __future__ import annotations

from collections.abc import Callable

from baton.kvtransfer.carrier import Unpacker, digests_of, positions_of
from baton.kvtransfer.errors import MalformedFrame, TransferError, from_peer
from baton.kvtransfer.inbox import Inbox
from baton.kvtransfer.link import Link, Outbound, unexpected
from baton.kvtransfer.messages import MAX_REASON_CHARS, Abort, Attach, Digests, Ended, Lend, Message, Push
from baton.kvtransfer.stats import Tally


class ReceiveChannel:
    """A `LinkOwner` and, to the inbox, a `Sender`."""

    def __init__(
        self, link: Link, inbox: Inbox, unpacker: Unpacker, tally: Tally, on_lost: Callable[[], None]
    ) -> None:
        self._link = link
        self._inbox = inbox
        self._unpacker = unpacker
        self._tally = tally
        self._on_lost = on_lost

    def on_message(self, message: Message, payload: memoryview) -> None:
        match message:
            case Push():
                self._take(message, lambda: self._write(message, payload))
            case Lend():
                self._take(message, lambda: self._copy(message))
            case Digests():
                self._take(message, lambda: self._confirm(message))
            case Attach():
                heads = range(message.first_head, message.first_head + message.heads)
                self._take(message, lambda: self._inbox.attach(message.slot, message.generation, self, heads))
            case Abort():
                given_up = from_peer(message.error, message.reason)
                self._inbox.fail(message.slot, message.generation, given_up, self)
            case _:
                raise unexpected(message)

    def _take(self, message: Attach | Push | Lend | Digests, take: Callable[[], None]) -> None:
        """A frame that is refused ends its transfer, if that is still open, and never another's."""
        try:
            take()
        except MalformedFrame:
            raise
        except TransferError as error:
            error.__traceback__ = None  # its frames hold the frame's buffers, and it is kept as the result
            self._inbox.refused[type(error).__name__] += 1
            if not self._inbox.fail(message.slot, message.generation, error, self):
                self.tell_ended(message.generation, error)

    def _write(self, push: Push, payload: memoryview) -> None:
        arrival = self._unpacker.unpack(push, payload)
        self._inbox.write(push.slot, push.generation, arrival, self, self._tally)

    def _copy(self, lend: Lend) -> None:
        loan = self._unpacker.borrow(lend)
        self._inbox.copy(lend.slot, lend.generation, loan, lend.is_digested, self, self._tally)

    def _confirm(self, said: Digests) -> None:
        positions, digests = positions_of(said.positions), digests_of(said.digests)
        self._inbox.confirm(said.slot, said.generation, positions, digests, self, self._tally)

    def tell_ended(self, generation: int, error: TransferError | None) -> None:
        if error is None:
            self._link.send(Ended(generation=generation))
        else:
            reason = str(error)[:MAX_REASON_CHARS]
            self._link.send(Ended(generation=generation, error=type(error).__name__, reason=reason))

    def on_closed(self, error: TransferError) -> None:
        self._inbox.lose(self, error)
        self._unpacker.close()
        self._on_lost()

    def next_frame(self) -> Outbound | None:
        return None
