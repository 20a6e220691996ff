"""Tickets on their way: MessagePack under HMAC-SHA256 (RFC 2104) with the cluster secret."""

from __future__ import annotations

import hmac
import math
from collections.abc import Sequence

import msgspec

from baton.kvtransfer.base import EPOCH_BYTES, TRANSFER_ID_BYTES, Ticket
from baton.kvtransfer.errors import BadTicket

MAX_TICKET_BYTES = 1 << 20
"""Room for a quarter of a million wanted blocks."""

MAX_RANKS = 64
"""Of one receiver, each with a ticket of its own."""

_MAGIC = b"BKT1"
_BUNDLE_MAGIC = b"BKB1"
_MAC_BYTES = 32
_HEAD_BYTES = len(_MAGIC) + _MAC_BYTES
_bundle_decoder = msgspec.msgpack.Decoder(list[bytes])
_decoder = msgspec.msgpack.Decoder(Ticket)


def seal(ticket: Ticket, secret: bytes) -> bytes:
    """`ticket` as bytes that only holders of `secret` can make. Raises BadTicket where it grows too large."""
    body = msgspec.msgpack.encode(ticket)
    if _HEAD_BYTES + len(body) > MAX_TICKET_BYTES:
        raise BadTicket(
            f"a ticket of {_HEAD_BYTES + len(body)} bytes is over the limit of {MAX_TICKET_BYTES}"
        )
    return _MAGIC + hmac.digest(secret, _MAGIC + body, "sha256") + body


def open_sealed(sealed: bytes, secret: bytes) -> Ticket:
    """The ticket in `sealed`. Raises BadTicket saying why: size, form, signature or content."""
    if not _HEAD_BYTES < len(sealed) <= MAX_TICKET_BYTES:
        limits = f"at least {_HEAD_BYTES + 1}, at most {MAX_TICKET_BYTES}"
        raise BadTicket(f"{len(sealed)} bytes are no ticket: {limits}")
    if not sealed.startswith(_MAGIC):
        raise BadTicket(f"a ticket starts with {_MAGIC!r}, not with {sealed[: len(_MAGIC)]!r}")
    body = sealed[_HEAD_BYTES:]
    mac = sealed[len(_MAGIC) : _HEAD_BYTES]
    if not hmac.compare_digest(mac, hmac.digest(secret, _MAGIC + body, "sha256")):
        raise BadTicket("the ticket's signature is wrong: altered, truncated, or sealed with another secret")
    try:
        ticket = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise BadTicket(f"the ticket's content is malformed: {error}") from error
    _require_sane(ticket)
    return ticket


def bundle(sealed: Sequence[bytes]) -> bytes:
    """The tickets of all ranks of one receiver as one; a single ticket stays as it is."""
    return sealed[0] if len(sealed) == 1 else _BUNDLE_MAGIC + msgspec.msgpack.encode(sealed)


def unbundle(bundled: bytes) -> list[bytes]:
    """The sealed tickets in `bundled`. Raises BadTicket for what is no bundle."""
    if not bundled.startswith(_BUNDLE_MAGIC):
        return [bundled]
    try:
        sealed = _bundle_decoder.decode(memoryview(bundled)[len(_BUNDLE_MAGIC) :])
    except msgspec.DecodeError as error:
        raise BadTicket(f"a bundle of tickets is malformed: {error}") from error
    if not 2 <= len(sealed) <= MAX_RANKS:
        raise BadTicket(f"a bundle of {len(sealed)} tickets: 2 to {MAX_RANKS} are allowed")
    return sealed


def _require_sane(ticket: Ticket) -> None:
    for name, size_bytes in (("transfer_id", TRANSFER_ID_BYTES), ("epoch", EPOCH_BYTES)):
        if len(getattr(ticket, name)) != size_bytes:
            raise BadTicket(f"the ticket's {name} has {len(getattr(ticket, name))} bytes, not {size_bytes}")
    if len(ticket.positions) % 4:
        raise BadTicket(f"the ticket's positions have {len(ticket.positions)} bytes, no multiple of 4")
    if not (math.isfinite(ticket.ttl_s) and ticket.ttl_s > 0):
        raise BadTicket(f"the ticket's ttl_s is {ticket.ttl_s}, no positive number of seconds")
