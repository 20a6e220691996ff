"""One question to a running router over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from baton.errors import Unavailable


def ask(
    url: str,
    api_key: str,
    method: str,
    path: str,
    timeout: httpx.Timeout,
    body: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """The JSON object that answers. Raises Unavailable where nobody answers, the router refuses, or what answers
    is no router."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        with httpx.Client(base_url=url, timeout=timeout, headers=headers, trust_env=False) as client:
            answer = client.request(method, path, json=body)
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unavailable(f"no router answers at {url}: {error}", field="url") from error
    try:
        said = answer.json()
        if answer.is_error:
            raise Unavailable(said["error"]["message"])
        return dict(said)
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(
            f"{url}: {path} answers {answer.status_code}, but not as a router does", field="url"
        ) from error
