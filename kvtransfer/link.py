"""A connection between two agents, as the halves of a transfer see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

from baton.kvtransfer.errors import MalformedFrame, TransferError
from baton.kvtransfer.messages import Attach, Digests, Lend, Message, Push

Pieces = tuple[memoryview, ...]
"""Bytes that follow one another on the wire, wherever they lie."""


class Outbound(NamedTuple):
    """A message in the order of its transfer. payload, behind a `Push`, stays unchanged until the link asks for
    the next frame, or `Link.release_payload` has returned; empty where there is none."""

    message: Attach | Push | Lend | Digests
    payload: Pieces


class LinkOwner(Protocol):
    """What stands at one end of a link. Called on the I/O thread, but `next_frame` from any (one at a time)."""

    def on_message(self, message: Message, payload: memoryview) -> None:
        """`payload` is lent for the call. Raising a TransferError closes the link with it."""

    def on_closed(self, error: TransferError) -> None:
        """The link is gone; called once."""

    def next_frame(self) -> Outbound | None:
        """What to send next, made when the link can take them, so that nothing piles up."""


class Link(ABC):
    """Ordered, reliable messages to one peer."""

    @abstractmethod
    def send(self, message: Message) -> None:
        """From any thread; goes before any frame that the owner has not been asked for yet. Dropped where the
        link is closed."""

    @abstractmethod
    def flush(self) -> None:
        """From any thread: the owner has frames. Sends what the link takes at once, the rest by and by."""

    @abstractmethod
    def release_payload(self) -> None:
        """From any thread: returns once the link reads no memory any more that a payload lay in."""

    @abstractmethod
    def close(self, error: TransferError) -> None:
        """On the I/O thread: frees everything and tells the owner; closing twice does nothing."""


def unexpected(message: Message) -> MalformedFrame:
    return MalformedFrame(f"a {type(message).__name__} is out of place here")
