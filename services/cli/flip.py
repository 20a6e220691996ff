"""`baton flip`: asks a router to change a worker's role."""

from __future__ import annotations

import httpx

from baton.cli.ask import ask

_CONNECT_TIMEOUT_S = 5.0
_MARGIN_S = 20.0
"""Of the answer over the drain: the router's own deadlines add up to less."""


def flip(url: str, worker_id: str, role: str, drain_timeout_s: float, api_key: str) -> str:
    """What the router says of it, as a line. Raises Unavailable where it refuses or does not answer."""
    timeout = httpx.Timeout(drain_timeout_s + _MARGIN_S, connect=_CONNECT_TIMEOUT_S)
    body = {"role": role, "drain_timeout_s": drain_timeout_s}
    change = ask(url, api_key, "POST", f"/workers/{worker_id}/role", timeout, body)
    return (
        f"{worker_id} is a {change['role']} worker: drained in {change['drained_s']:.2f} s, "
        f"switched in {change['switched_s']:.2f} s"
    )
