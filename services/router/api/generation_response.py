"""The answer that runs its generation: headers with the first token, then a stream of events or one body.

The generation lives inside the answer, so whatever ends the answer (the last token, a failure, a client that
closes the connection) ends the generation too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from baton.errors import BatonError, Unavailable
from baton.router.api.disconnect import run_until_disconnect
from baton.router.api.errors import error_body
from baton.router.api.headers import route_headers
from baton.router.api.job import GenerationJob
from baton.router.api.prompt_run import ChoiceDelta, deltas_of

_log = logging.getLogger(__name__)

_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect events
]


class GenerationResponse(Response):
    """Runs a job as an ASGI response. A failure before the first token raises, so that it has a status of its
    own; after it, an error event ends the stream, without `[DONE]`."""

    def __init__(self, job: GenerationJob) -> None:
        super().__init__()
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._stream if self._job.is_stream else self._whole
        try:
            is_complete = await run_until_disconnect(receive, answer(send))
        except asyncio.CancelledError:  # by the HTTP server, which has waited as long as a stopping one may
            raise Unavailable("the router is stopping") from None
        if not is_complete:
            _log.info("request %s: 499, the client closed the connection", self._job.request_id)

    async def _whole(self, send: Send) -> None:
        job = self._job
        choices: list[list[ChoiceDelta]] = [[] for run in job.runs for _ in range(run.request.n)]
        async with aclosing(deltas_of(job.runs, job.backend)) as deltas:
            async for delta in deltas:
                choices[delta.index].append(delta)
        body = msgspec.json.encode(job.format.whole(choices, job.usage()))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send(self._start(headers))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, send: Send) -> None:
        async with aclosing(deltas_of(self._job.runs, self._job.backend)) as deltas:
            first = await anext(deltas)
            await send(self._start(_STREAM_HEADERS))
            try:
                await self._send_events(send, first, deltas)
            except BatonError as error:
                _log.warning("request %s: failed while streaming: %s", self._job.request_id, error)
                await send(_part(event(error_body(error))))
        await send({"type": "http.response.body", "body": b""})

    async def _send_events(
        self, send: Send, first: ChoiceDelta, deltas: AsyncGenerator[ChoiceDelta, None]
    ) -> None:
        job = self._job
        opening = b"".join(event(chunk) for chunk in job.format.opening(job.usage_of_chunk()))
        await send(_part(opening + self._events_of(first)))
        async for delta in deltas:
            if events := self._events_of(delta):
                await send(_part(events))
        usage = event(job.format.usage_chunk(job.usage())) if job.usage_reports.at_end else b""
        await send(_part(usage + _DONE))

    def _events_of(self, delta: ChoiceDelta) -> bytes:
        chunk = self._job.format.chunk(delta, self._job.usage_of_chunk())
        return b"" if chunk is None else event(chunk)

    def _start(self, headers: list[tuple[bytes, bytes]]) -> Message:
        routes = route_headers(run.route for run in self._job.runs)
        return {"type": "http.response.start", "status": 200, "headers": [*headers, *routes]}


def event(body: msgspec.Struct) -> bytes:
    """One server-sent event (WHATWG HTML, section 9.2); JSON has no line breaks of its own."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}
