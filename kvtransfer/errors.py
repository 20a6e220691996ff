"""What can go wrong between two pools: one root, one name a cause."""

from __future__ import annotations


class TransferError(Exception):
    """Root of all errors of the hand-off; the message says which transfer, field and value."""


class UnknownScheme(TransferError):
    """No transport has this URI scheme; the message lists those that exist."""


class SchemeUnavailable(TransferError):
    """The scheme exists but cannot work here (memory not shareable, port in use); the message says why."""


class BadTicket(TransferError):
    """The ticket is malformed, wrongly signed, expired, or used before."""


class LayoutMismatch(TransferError):
    """The two pools lay out a block differently; the message names the field and both values."""


class BlockOutOfRange(TransferError):
    """A position or block id cannot be used: outside the pool, listed twice, or promised to another transfer."""


class TooManyTransfers(TransferError):
    """The agent's bound on open transfers is reached."""


class StaleGeneration(TransferError):
    """A write carries a generation that the receiver has fenced off."""


class ChecksumMismatch(TransferError):
    """The bytes that arrived are not those that the sender had."""


class MalformedFrame(TransferError):
    """The peer sent something that the protocol does not know, or a frame whose signature is wrong."""


class Unauthenticated(TransferError):
    """The peer does not hold the cluster secret."""


class PeerLost(TransferError):
    """The peer's process or connection is gone, or was never reached."""


class TransferTimeout(TransferError):
    """The hand-off did not finish before the ticket's expiry."""


class TransferAborted(TransferError):
    """One side gave the transfer up on purpose (cancel, disconnect, drain)."""


_BY_NAME: dict[str, type[TransferError]] = {
    error.__name__: error
    for error in (
        SchemeUnavailable,
        BadTicket,
        LayoutMismatch,
        BlockOutOfRange,
        TooManyTransfers,
        StaleGeneration,
        ChecksumMismatch,
        MalformedFrame,
        Unauthenticated,
        PeerLost,
        TransferTimeout,
        TransferAborted,
    )
}


def from_peer(name: str, message: str) -> TransferError:
    """The error that a peer reported by its class name; an unknown name becomes the root class."""
    return _BY_NAME.get(name, TransferError)(message)
