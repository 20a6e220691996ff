"""The one translation of Baton's errors, and of FastAPI's own, to OpenAI's error shape and HTTP status."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton.errors import (
    BatonError,
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QueueTimeout,
    RequestTooLarge,
    Unauthorized,
    Unavailable,
)


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested output do not fit the model's context; client libraries look for this code."""

    code = "context_length_exceeded"


class RefusedByFramework(BatonError):
    """What FastAPI refuses by itself: an unknown path, a wrong method."""

    code = "invalid_request"


# OpenAI's `type`, which client libraries group errors by; a subclass has its parent's.
_TYPES: dict[type[BatonError], str] = {
    InvalidRequest: "invalid_request_error",
    RefusedByFramework: "invalid_request_error",
    RequestTooLarge: "invalid_request_error",
    ModelNotFound: "not_found_error",
    Unauthorized: "authentication_error",
    Overloaded: "rate_limit_error",
    QueueTimeout: "timeout_error",
    DeadlineExceeded: "timeout_error",
    Cancelled: "cancelled_error",
    Unavailable: "service_unavailable_error",
    BatonError: "server_error",
}

_SHOWN_CHARS = 80


class ErrorDetail(msgspec.Struct):
    """OpenAI's error object. `param` is the dotted path of the offending field."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


def error_body(error: BatonError) -> ErrorBody:
    kind = next(_TYPES[cls] for cls in type(error).__mro__ if cls in _TYPES)
    return ErrorBody(ErrorDetail(error.message, kind, error.field, error.code))


def error_response(error: BatonError) -> Response:
    """The whole HTTP answer to a request that failed before its answer began."""
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    return json_response(error_body(error), error.http_status, headers)


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def invalid(field: str, problem: str) -> InvalidRequest:
    """`problem` completes a sentence whose subject is the field."""
    return InvalidRequest(f"{field}: {problem}", field=field)


def shown(value: object) -> str:
    """A client's value, cut to a length that is fit for a message."""
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, int) and not -(10**_SHOWN_CHARS) < value < 10**_SHOWN_CHARS:
        return "an integer that long"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def from_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """The first thing that pydantic found, under the dotted path of its field."""
    first = errors[0]
    # "<...>" names the branch of a union (see `fields.py`); no client has heard of it.
    path = [str(part) for part in first["loc"][1:] if not str(part).startswith("<")]
    field = ".".join(path) or None
    is_absent = first["type"] == "missing"
    value = "" if is_absent else f", not {shown(first['input'])}"
    return InvalidRequest(f"{field or 'body'}: {first['msg']}{value}", field=field)


def install(app: FastAPI) -> None:
    """Makes every error that leaves an endpoint an answer in OpenAI's shape."""

    @app.exception_handler(BatonError)
    async def on_baton_error(_: Request, error: BatonError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(_: Request, error: RequestValidationError) -> Response:
        return error_response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        body = error_body(RefusedByFramework(f"{request.method} {request.url.path}: {error.detail}"))
        return json_response(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def on_fault(request: Request, _: Exception) -> Response:
        """A bug of ours. Starlette raises it again for the server's log; the client learns no details."""
        headers = {"x-request-id": request.state.request_id}
        return json_response(error_body(BatonError("internal error")), BatonError.http_status, headers)
