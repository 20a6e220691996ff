"""Orders as POST requests: for an orchestrator, or a script in front of one.

A request carries the order as JSON (`ScaleOrder.body`), its id as `Idempotency-Key`, the token as Bearer, and with
a key `X-Baton-Signature: t=<unix seconds>,v1=<hex>`, the HMAC-SHA256 of `<unix seconds>.<body>`. Any 2xx takes the
order. No answer, 408, 429 and 5xx are tried again with growing pauses until the deadline, for as long as the router
leads; other answers refuse it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable

import httpx

from baton.errors import Unavailable
from baton.router.scalers.base import ScaleOrder, require_lead

_DEADLINE_S = 60.0
_CALL_TIMEOUT_S = 10.0
_FIRST_PAUSE_S = 0.25
_MAX_PAUSE_S = 8.0
_PASSING = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)


class WebhookScaler:
    def __init__(self, url: str, token: str, key: str, deadline_s: float = _DEADLINE_S) -> None:
        """deadline_s: for one order, all attempts and pauses together."""
        self._url = url
        self._token = token
        self._key = key.encode()
        self._deadline_s = deadline_s

    async def order(self, order: ScaleOrder, leads: Callable[[], bool]) -> None:
        last = "no answer"
        try:
            async with asyncio.timeout(self._deadline_s), self._client() as client:
                pause_s = _FIRST_PAUSE_S
                require_lead(leads)
                while last := await self._attempt(client, order):
                    await asyncio.sleep(pause_s)
                    pause_s = min(_MAX_PAUSE_S, 2 * pause_s)
                    require_lead(leads)
        except TimeoutError:
            raise Unavailable(
                f"{self._url} took no order within {self._deadline_s:g} s: {last}", field="scaler"
            ) from None

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=_CALL_TIMEOUT_S, follow_redirects=False, trust_env=False)

    async def _attempt(self, client: httpx.AsyncClient, order: ScaleOrder) -> str:
        """Empty where the order was taken, else why to try again. Raises Unavailable where it is refused."""
        body = json.dumps(order.body()).encode()
        try:
            answer = await client.post(self._url, content=body, headers=self._headers(order, body))
        except httpx.RequestError as error:
            return repr(error)
        if answer.is_success:
            return ""
        told = f"status {answer.status_code}"
        if answer.is_server_error or answer.status_code in _PASSING:
            return told
        raise Unavailable(f"{self._url} refuses an order: {told} {answer.text[:200]}", field="scaler")

    def _headers(self, order: ScaleOrder, body: bytes) -> dict[str, str]:
        headers = {"content-type": "application/json", "idempotency-key": order.order_id}
        if self._token:
            headers["authorization"] = f"Bearer {self._token}"
        if self._key:
            headers["x-baton-signature"] = signature(self._key, int(time.time()), body)
        return headers


def signature(key: bytes, unix_s: int, body: bytes) -> str:
    digest = hmac.new(key, b"%d." % unix_s + body, hashlib.sha256).hexdigest()
    return f"t={unix_s},v1={digest}"
