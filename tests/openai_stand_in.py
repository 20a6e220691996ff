"""A small server that speaks OpenAI's streaming protocol with known counts and, by model name, known faults."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

TOKENS_PER_WORD = 2
TEMPLATE_TOKENS = 7
GAP_S = 0.002


class StandIn:
    """received: the bodies of all streamed requests. most_at_once: how many were ever under way together."""

    def __init__(self, *, can_tokenize: bool = True) -> None:
        self.received: list[dict[str, Any]] = []
        self.most_at_once = 0
        self._under_way = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        if can_tokenize:
            self.app.post("/tokenize")(self.tokenize)
        self.app.post("/v1/completions")(self.complete)
        self.app.post("/v1/chat/completions")(self.complete)

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "sound", "object": "model"}]}

    async def tokenize(self, request: Request) -> dict[str, Any]:
        words = (await request.json())["prompt"].split()
        return {"tokens": [1000 + len(word) * 100 + ord(word[0]) for word in words]}

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        count = (
            len(prompt)
            if isinstance(prompt, list)
            else len(prompt.split()) * TOKENS_PER_WORD + TEMPLATE_TOKENS
        )
        usage = {
            "prompt_tokens": count,
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 3},
        }
        if not body["stream"]:
            return JSONResponse({"choices": [{"text": "x"}], "usage": usage})
        self.received.append(body)
        if body["model"] == "full" or (body["model"] == "often-full" and len(self.received) % 3 == 0):
            return JSONResponse({"error": {"message": "full"}}, status_code=429)
        return StreamingResponse(self.events(body, usage), media_type="text/event-stream")

    async def events(self, body: dict[str, Any], usage: dict[str, Any]) -> AsyncIterator[str]:
        self._under_way += 1
        self.most_at_once = max(self.most_at_once, self._under_way)
        is_chat, model = "messages" in body, body["model"]
        yield ": a comment\n\n"
        if is_chat:
            yield event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for index in range(body["max_tokens"]):
            await asyncio.sleep(GAP_S if model != "endless" else 60)
            if model == "fails-midway" and index == 2:
                yield event({"error": {"code": "worker_failed", "message": "lost"}})
            if model == "garbles" and index == 2:
                yield "data: {not json\n\n"
            yield event({"choices": [{"delta": {"content": "x"}} if is_chat else {"text": "x"}]})
        if model != "truncates":
            yield event({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
        if body.get("stream_options") == {"include_usage": True} and model != "no-usage":
            yield event({"choices": [], "usage": usage})
        self._under_way -= 1
        yield "data: [DONE]\n\n"


def event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


@contextmanager
def serve(stand_in: StandIn) -> Iterator[str]:
    """Serves on a free port, from a thread; yields the base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(stand_in.app, log_level="error", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
