"""Tickets: only what this cluster sealed, and whole, is opened."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_ends import LAYOUT, SECRET

from baton.kvtransfer.base import Ticket
from baton.kvtransfer.errors import BadTicket
from baton.kvtransfer.ticket import MAX_TICKET_BYTES, open_sealed, seal

TICKET = Ticket(
    transfer_id=bytes(16),
    slot=3,
    generation=7,
    epoch=bytes(8),
    endpoints=("shm://name", "tcp://127.0.0.1:1"),
    layout=LAYOUT,
    block_bytes=4096,
    positions=bytes(8),
    ttl_s=3600.0,
)
SEALED = seal(TICKET, SECRET)


def changed(**fields: object) -> bytes:
    return seal(msgspec.structs.replace(TICKET, **fields), SECRET)


def test_a_sealed_ticket_opens_as_it_was() -> None:
    assert open_sealed(SEALED, SECRET) == TICKET


def test_another_secret_does_not_open_it() -> None:
    with pytest.raises(BadTicket, match="signature"):
        open_sealed(SEALED, b"another")


@given(st.integers(0, 8 * len(SEALED) - 1))
def test_no_bit_can_be_changed(bit: int) -> None:
    forged = bytearray(SEALED)
    forged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadTicket):
        open_sealed(bytes(forged), SECRET)


@given(st.integers(0, len(SEALED) - 1))
def test_no_truncated_ticket_opens(size: int) -> None:
    with pytest.raises(BadTicket):
        open_sealed(SEALED[:size], SECRET)


@given(st.binary(max_size=200))
def test_noise_is_no_ticket(noise: bytes) -> None:
    with pytest.raises(BadTicket):
        open_sealed(noise, SECRET)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"transfer_id": bytes(3)}, "transfer_id has 3 bytes"),
        ({"epoch": b""}, "epoch has 0 bytes"),
        ({"positions": bytes(7)}, "positions have 7 bytes"),
        ({"slot": "three"}, "slot"),
        ({"ttl_s": 0.0}, "ttl_s is 0.0"),
        ({"ttl_s": float("nan")}, "ttl_s is nan"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(BadTicket, match=reason):
        open_sealed(changed(**fields), SECRET)


def test_size_is_bounded_on_both_ways() -> None:
    with pytest.raises(BadTicket, match=str(MAX_TICKET_BYTES)):
        changed(positions=bytes(MAX_TICKET_BYTES))
    with pytest.raises(BadTicket, match=str(MAX_TICKET_BYTES)):
        open_sealed(SEALED + bytes(MAX_TICKET_BYTES), SECRET)
