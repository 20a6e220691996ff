"""Consul's HTTP API as Baton calls it: py-consul says what to send, httpx sends it, errors are translated once.

py-consul's own asyncio client hands TLS settings to aiohttp by arguments that aiohttp has deprecated, and lets
CONSUL_HTTP_TOKEN win over the token that it is given.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable
from typing import Any

import httpx
from consul.base import Consul, HTTPClient, Response
from consul.exceptions import ACLDisabled, ACLPermissionDenied, BadRequest, ConsulException

from baton.discovery.base import RegistryAccess, RegistryAddress
from baton.errors import ConfigError, InvalidRequest, Unauthorized, Unavailable
from baton.rpc import host_port

CALL_TIMEOUT_S = 1.5
"""Half a lease: one lost heartbeat must not cost it."""

_CONNECT_TIMEOUT_S = 1.0
"""Of one attempt. Short, because what was sent into a partition is repeated ever later, and its end is to be
noticed at once."""


class ConsulRefusal(Unavailable):
    """Consul has answered, with an error: it does not know what it was asked for, or has no leader."""


class ConsulApi:
    """`consul`: py-consul's calls, each to be awaited through `ask`."""

    def __init__(self, address: RegistryAddress, access: RegistryAccess) -> None:
        self._where = f"Consul at {host_port(address.host, address.port)}"
        is_https = address.scheme == "consul+https"
        if not is_https and (access.ca or access.certificate):
            raise ConfigError("certificates are for consul+https:// only", field="registry")
        if access.key and not access.certificate:
            raise ConfigError(f"the key {access.key} is given without its certificate", field="registry_key")
        headers = {"X-Consul-Token": access.token} if access.token else {}
        self._http = httpx.AsyncClient(
            base_url=f"{'https' if is_https else 'http'}://{host_port(address.host, address.port)}",
            headers=headers,
            verify=_tls(access) if is_https else False,
            trust_env=False,
            timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
        )
        self.consul: Any = _Consul(self._http)

    async def ask(self, call: Awaitable[Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """The call's result. Raises Unauthorized with Consul's reason, ConsulRefusal for other errors of its own,
        InvalidRequest for what it does not accept, and Unavailable where it does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except (ACLPermissionDenied, ACLDisabled) as error:
            raise Unauthorized(f"{self._where} refuses the token: {error}", field="registry_token") from error
        except BadRequest as error:
            raise InvalidRequest(f"{self._where} does not accept the announcement: {error}") from error
        except ConsulException as error:
            raise ConsulRefusal(f"{self._where}: {error}") from error
        except TimeoutError as error:
            raise Unavailable(f"{self._where} has not answered within {timeout_s:.3g} s") from error
        except (httpx.HTTPError, ssl.SSLError) as error:  # TLS may be refused late, which httpx passes on
            raise Unavailable(f"{self._where}: {type(error).__name__}: {error}") from error

    async def require_readable(self, service: str) -> None:
        """Raises Unauthorized where the token may not read `service`: asked for it, Consul would say that nobody is
        there. A Consul without ACLs, or that does not tell, is believed."""
        if not await self.ask(self._may_read(service)):
            raise Unauthorized(
                f"{self._where}: the token may not read the service {service}, so nobody could be seen there; its "
                "policy needs service:read",
                field="registry_token",
            )

    async def close(self) -> None:
        await self._http.aclose()

    async def _may_read(self, service: str) -> bool:
        question = [{"Resource": "service", "Access": "read", "Segment": service}]
        answer = await self._http.post("/v1/internal/acl/authorize", json=question)
        return answer.status_code != httpx.codes.OK or all(each["Allow"] for each in answer.json())


class _Consul(Consul):  # type: ignore[misc] # py-consul has no types
    def __init__(self, http: httpx.AsyncClient) -> None:
        self._transport = _Transport(http)
        super().__init__()
        self.token = None  # the transport's; py-consul would prefer the environment's

    def http_connect(self, *_: object, **__: object) -> _Transport:
        return self._transport


class _Transport(HTTPClient):  # type: ignore[misc] # py-consul has no types
    """py-consul's contract: each method returns what its call returns, an awaitable here."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        super().__init__()
        self.base_uri = ""  # httpx has it
        self._http = http

    def get(self, callback: Any, path: str, params: Any = None, **_: object) -> Awaitable[Any]:
        return self._send("GET", callback, path, params)

    def put(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = "", **_: object
    ) -> Awaitable[Any]:
        return self._send("PUT", callback, path, params, data)

    def post(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = "", **_: object
    ) -> Awaitable[Any]:
        return self._send("POST", callback, path, params, data)

    def delete(
        self, callback: Any, path: str, params: Any = None, data: str | bytes = "", **_: object
    ) -> Awaitable[Any]:
        return self._send("DELETE", callback, path, params, data)

    def close(self) -> Awaitable[None]:
        return self._http.aclose()

    async def _send(
        self, method: str, callback: Any, path: str, params: Any, data: str | bytes | None = None
    ) -> Any:
        answer = await self._http.request(method, self.uri(path, params), content=data)
        return callback(Response(answer.status_code, answer.headers, answer.text))


def _tls(access: RegistryAccess) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.certificate is not None:
            context.load_cert_chain(access.certificate, access.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the registry's certificates (CA {access.ca}, own {access.certificate}, key {access.key}) cannot be "
            f"read: {error}",
            field="registry_ca" if access.certificate is None else "registry_certificate",
        ) from error
    return context
