"""What requests say in headers, and what answers do."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Sequence

from starlette.datastructures import Headers

from baton.request import Objectives, Route
from baton.router.api.errors import invalid, shown
from baton.router.api.schema import SessionBody

_MAX_ID_CHARS = 512
_MAX_OBJECTIVE_MS = 86_400_000.0


def request_id_of(headers: Headers) -> str:
    """The client's own X-Request-ID, for echoes and logs, or a new one where it gave none that is printable."""
    given = headers.get("x-request-id", "")
    is_fit = 0 < len(given) <= _MAX_ID_CHARS and given.isascii() and given.isprintable()
    return given if is_fit else secrets.token_hex(16)


def session_of(headers: Headers, body: SessionBody) -> str | None:
    """What requests that belong together share: a header, else a field of the body."""
    for name in ("x-session-id", "x-smg-routing-key"):
        if value := headers.get(name):
            if len(value) > _MAX_ID_CHARS:
                raise invalid(name, f"at most {_MAX_ID_CHARS} characters, not {len(value)}")
            return value
    return body.session_id or body.user


def tenant_of(headers: Headers, body: SessionBody, api_keys: Sequence[str]) -> str:
    """Whose share of the fleet the request takes: where several keys tell clients apart, the key's owner; else whom
    a header names, as a gateway sets it; else the cache salt; else all are one."""
    if len(api_keys) > 1:
        key = headers.get("authorization", "").partition(" ")[2].strip()
        return f"key-{hashlib.sha256(key.encode('latin-1')).hexdigest()[:16]}"
    if name := headers.get("x-tenant-id"):
        if len(name) > _MAX_ID_CHARS:
            raise invalid("x-tenant-id", f"at most {_MAX_ID_CHARS} characters, not {len(name)}")
        return name
    return body.cache_salt or ""


def objectives_of(headers: Headers, defaults: Objectives) -> Objectives:
    """What the request should be served within; a header goes before the default."""
    return Objectives(
        _objective_s(headers, "x-slo-ttft-ms", defaults.ttft_s),
        _objective_s(headers, "x-slo-tpot-ms", defaults.tpot_s),
    )


def _objective_s(headers: Headers, name: str, default_s: float | None) -> float | None:
    """Given in milliseconds."""
    value = headers.get(name)
    if value is None:
        return default_s
    try:
        objective_ms = float(value)
    except ValueError:
        objective_ms = math.nan
    if not 0 < objective_ms <= _MAX_OBJECTIVE_MS:
        limit = f"milliseconds above 0 and at most {_MAX_OBJECTIVE_MS:.0f}"
        raise invalid(name, f"{limit}, not {shown(value)}")
    return objective_ms / 1000


def route_headers(routes: Iterable[Route]) -> list[tuple[bytes, bytes]]:
    """Where the prompts of a request run, as far as it is known, each worker once."""
    routes = list(routes)
    workers = {
        b"x-baton-prefill": [route.prefill_worker for route in routes],
        b"x-baton-decode": [route.decode_worker for route in routes],
    }
    return [
        (name, ", ".join(dict.fromkeys(filter(None, ids))).encode("latin-1")) for name, ids in workers.items()
    ]
