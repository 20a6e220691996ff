"""gRPC as Baton uses it: one secret on every port, deadlines on every call, errors translated once each way.

Servers carry health and reflection (both open to probes); every other method wants the cluster's token.
A BatonError crosses as a status code plus a JSON trailer, and is raised again as the same class.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from baton.errors import (
    ERRORS_BY_CODE,
    BatonError,
    DeadlineExceeded,
    Overloaded,
    Unauthorized,
    Unavailable,
    WorkerFailed,
)

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CONTROL_TIMEOUT_S = 5.0
"""Deadline of calls that only exchange state (register, heartbeat, start, release)."""

STREAM_BEAT_S = 1.0
STREAM_SILENCE_S = 10.0
"""A standing stream carries a message at least every STREAM_BEAT_S; one silent for STREAM_SILENCE_S is dead."""

_TOKEN_HEADER = "x-baton-token"  # noqa: S105 - a header's name
_ERROR_TRAILER = "x-baton-error-bin"
_OPEN_SERVICES = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 4_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.so_reuseport", 0),
)
_STATUS_BY_CODE = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "model_not_found": grpc.StatusCode.NOT_FOUND,
    "duplicate_worker": grpc.StatusCode.ALREADY_EXISTS,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "deadline_exceeded": grpc.StatusCode.DEADLINE_EXCEEDED,
}
_ERROR_BY_STATUS: dict[grpc.StatusCode, type[BatonError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthorized,
}


def rpc_token(secret: bytes) -> str:
    """What a caller shows on every call; derived, so that the secret itself never crosses a socket."""
    return hmac.digest(secret, b"baton rpc", "sha256").hex()


def host_port(host: str, port: int) -> str:
    """An address as URLs and gRPC write it, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Channel:
    """A client's connection to one server, with the cluster's token on every call."""

    def __init__(self, address: str, secret: bytes) -> None:
        self.address = address
        self.metadata = ((_TOKEN_HEADER, rpc_token(secret)),)
        self.grpc = aio.insecure_channel(address, options=list(_CHANNEL_OPTIONS))
        self.is_reachable = True
        self._is_closed = False

    async def keep_connected(self) -> None:
        """Tries to connect whenever there is no connection, until cancelled. `is_reachable` is False from an
        attempt that fails to one that succeeds."""
        while True:
            state = self.grpc.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                self.is_reachable = False
            elif state is grpc.ChannelConnectivity.READY:
                self.is_reachable = True
            await self.grpc.wait_for_state_change(state)

    @asynccontextmanager
    async def errors_translated(self) -> AsyncIterator[None]:
        """Raises the server's BatonError again; other statuses become the nearest one, naming the address. What
        is under way when the channel is closed fails with Unavailable."""
        try:
            yield
        except aio.AioRpcError as error:
            raise self._translate(error) from error
        except (aio.UsageError, asyncio.CancelledError):
            # gRPC cancels the calls of a channel that is closed, as if their callers had given them up.
            if not self._is_closed or is_task_cancelled():
                raise
            raise Unavailable(f"{self.address}: the connection was closed") from None

    async def close(self) -> None:
        self._is_closed = True
        await self.grpc.close(grace=None)

    def _translate(self, error: aio.AioRpcError) -> BatonError:
        for key, value in error.trailing_metadata() or ():
            if key == _ERROR_TRAILER:
                fields = json.loads(value)
                return ERRORS_BY_CODE.get(fields["code"], WorkerFailed)(
                    fields["message"], field=fields["field"]
                )
        kind = _ERROR_BY_STATUS.get(error.code(), WorkerFailed)
        return kind(f"{self.address}: {error.code().name.lower()}: {error.details()}")


def is_task_cancelled() -> bool:
    """Whether a CancelledError that arrives here is meant for this task, not for what it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Server:
    """A gRPC server with health, reflection, authentication and error translation.

    `add` servicers, then `start`. `port` is the bound port (asked 0: chosen by the system).
    """

    def __init__(self, host: str, port: int, secret: bytes) -> None:
        self.grpc = aio.server(
            interceptors=[_ServerInterceptor(rpc_token(secret))], options=list(_CHANNEL_OPTIONS)
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        self._names: list[str] = []
        try:
            self.port = self.grpc.add_insecure_port(host_port(host, port))
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {host_port(host, port)}: is the port in use?", field="port"
            ) from error

    def add(self, full_name: str, register: Callable[[aio.Server], None]) -> None:
        """Mounts a servicer: its full service name and its generated `add_…_to_server`, bound."""
        register(self.grpc)
        self._names.append(full_name)

    async def start(self) -> None:
        names = [*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.grpc)
        await self.grpc.start()
        await self.set_serving(True)

    async def set_serving(self, serving: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        await self.grpc.stop(grace_s)


class _ServerInterceptor(aio.ServerInterceptor):
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_OPEN_SERVICES):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        if not hmac.compare_digest(str(metadata.get(_TOKEN_HEADER, "")), self._token):
            return _refuse(handler)
        return _translate_errors(handler)


def _refuse(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    async def refuse(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no cluster token, or a wrong one")

    async def refuse_stream(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        await refuse(request, context)
        yield None

    return _same_kind(handler, refuse_stream if handler.response_streaming else refuse)


def _translate_errors(handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
    if handler.response_streaming:
        stream_method: Any = handler.stream_stream if handler.request_streaming else handler.unary_stream

        async def stream(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async with aclosing(stream_method(request, context)) as replies:
                    async for reply in replies:
                        yield reply
            except BatonError as error:
                await _abort(context, error)

        return _same_kind(handler, stream)
    unary_method: Any = handler.stream_unary if handler.request_streaming else handler.unary_unary

    async def unary(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await unary_method(request, context)
        except BatonError as error:
            return await _abort(context, error)

    return _same_kind(handler, unary)


async def _abort(context: aio.ServicerContext[Any, Any], error: BatonError) -> None:
    trailer = json.dumps({"code": error.code, "message": error.message, "field": error.field}).encode()
    status = _STATUS_BY_CODE.get(error.code, grpc.StatusCode.INTERNAL)
    await context.abort(status, error.message, ((_ERROR_TRAILER, trailer),))


def _same_kind(
    handler: grpc.RpcMethodHandler[Any, Any], method: Callable[..., Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    kinds: Sequence[Callable[..., grpc.RpcMethodHandler[Any, Any]]] = (
        grpc.unary_unary_rpc_method_handler,
        grpc.unary_stream_rpc_method_handler,
        grpc.stream_unary_rpc_method_handler,
        grpc.stream_stream_rpc_method_handler,
    )
    make = kinds[2 * bool(handler.request_streaming) + bool(handler.response_streaming)]
    return make(method, handler.request_deserializer, handler.response_serializer)
