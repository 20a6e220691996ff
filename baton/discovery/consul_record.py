"""A worker as an entry of Consul's service catalogue: a signed record in the metadata, beside what people read.

Whoever may write to Consul could otherwise send requests of this fleet, and its token, to an address of their own.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from baton.errors import InvalidRequest, Unauthorized
from baton.fleet import Member
from baton.wire import registry_pb2
from baton.wire.convert import member_from_wire, member_to_wire

_CHUNK_CHARS = 512
"""The most that Consul takes as one value of a service's metadata, in bytes."""

_READABLE_CHARS = 128

_RECORD = "record-"
_SIGNATURE = "signature"


def to_meta(member: Member, secret: bytes) -> dict[str, str]:
    """Raises InvalidRequest with the field where `member` announces nonsense."""
    wire = member_to_wire(member)
    member_from_wire(wire)
    record = wire.SerializeToString()
    text = base64.b64encode(record).decode()
    chunks = [text[start : start + _CHUNK_CHARS] for start in range(0, len(text), _CHUNK_CHARS)]
    return {
        "role": member.worker.role.value,
        "state": member.state.value,
        "model": member.worker.model.name[:_READABLE_CHARS],
        "version": member.worker.version[:_READABLE_CHARS],
        "pid": str(member.worker.pid),
        "epoch": member.worker.epoch.hex(),
        _SIGNATURE: _sign(record, secret),
        **{f"{_RECORD}{number}": chunk for number, chunk in enumerate(chunks)},
    }


def from_meta(meta: Mapping[str, Any], secret: bytes) -> Member:
    """Raises Unauthorized for a record that is not signed with `secret`, InvalidRequest for any other nonsense."""
    count = sum(key.startswith(_RECORD) for key in meta)
    text = "".join(str(meta.get(f"{_RECORD}{number}", "")) for number in range(count))
    try:
        record = base64.b64decode(text, validate=True)
        if not hmac.compare_digest(_sign(record, secret), str(meta.get(_SIGNATURE, ""))):
            raise Unauthorized("its record is not signed with this fleet's secret", field=_SIGNATURE)
        return member_from_wire(registry_pb2.Member.FromString(record))
    except (binascii.Error, DecodeError, TypeError) as error:
        raise InvalidRequest(f"its record cannot be read: {error}", field=_RECORD) from error


def _sign(record: bytes, secret: bytes) -> str:
    return hmac.digest(secret, b"baton registry record\0" + record, "sha256").hex()
