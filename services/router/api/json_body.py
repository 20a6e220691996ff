"""Reads request bodies: JSON as RFC 8259 has it, within the size limit, and nothing else.

Python's own reader takes NaN, lone surrogates and any depth of nesting; msgspec takes none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from baton.errors import Cancelled, InvalidRequest, RequestTooLarge
from baton.router.api.context import context_of
from baton.router.api.errors import shown


class _JsonRequest(Request):
    """A request whose body has been read and parsed."""

    def __init__(self, request: Request, raw: bytes, content: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._raw = raw
        self._content = content

    async def body(self) -> bytes:
        return self._raw

    async def json(self) -> Any:
        return self._content


class JsonRoute(APIRoute):
    """A route whose body is read here, before FastAPI validates it."""

    may_be_empty: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_and_handle(request: Request) -> Response:
            raw = await _read(request, (await context_of(request)).settings.max_body_bytes)
            if self.may_be_empty and not raw:
                return await handle(_JsonRequest(request, raw, None))
            _check_content_type(request)
            return await handle(_JsonRequest(request, raw, _parse(raw)))

        return read_and_handle


class OptionalJsonRoute(JsonRoute):
    """The same, where no body at all is as good as an empty object."""

    may_be_empty = True


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "")
    if given.split(";")[0].strip().lower() != "application/json":
        raise InvalidRequest(
            f"content-type: application/json is expected, not {shown(given)}", field="content-type"
        )


async def _read(request: Request, limit_bytes: int) -> bytes:
    """Stops at the limit, whether or not the client declared its length. What follows is thrown away by uvicorn
    as it comes, so that a client that sends before it reads gets to the answer."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise RequestTooLarge(f"body: at most {limit_bytes} bytes, not {declared}")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise RequestTooLarge(f"body: at most {limit_bytes} bytes, not {len(body)} or more")
    except ClientDisconnect as error:
        raise Cancelled("the client closed the connection while sending the body") from error
    return bytes(body)


def _parse(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"body: invalid UTF-8 ({error.reason})") from error
    except RecursionError as error:
        raise InvalidRequest("body: nested too deeply") from error
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"body: {error}") from error
