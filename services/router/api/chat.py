"""POST /v1/chat/completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from baton.router.api.answers import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    OptionalUsage,
    Usage,
)
from baton.router.api.context import ApiContext, Context
from baton.router.api.errors import invalid
from baton.router.api.examples import CHAT_RESPONSES
from baton.router.api.generation_response import GenerationResponse
from baton.router.api.job import GenerationJob, Prompt, UsageReports, prompt_runs
from baton.router.api.json_body import JsonRoute
from baton.router.api.limits import Limits, OutputLength
from baton.router.api.logprobs import ChatLogprobs, TokenNames, chat_logprobs
from baton.router.api.prompt_run import ChoiceDelta, PromptRun
from baton.router.api.schema import ChatCompletionRequest, ChatOfMessages

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Answer a conversation", responses=CHAT_RESPONSES)
async def chat_completions(body: ChatCompletionRequest, request: Request, context: Context) -> Response:
    """OpenAI's chat completions, with vLLM's sampling fields. Text parts only; no tools yet."""
    limits = context.limits
    model = limits.check_model(body.model)
    limits.check_sequences(1, body.n)
    reports = UsageReports.of(body)
    answer_id = f"chatcmpl-{secrets.token_hex(16)}"
    prompt = Prompt("messages", await chat_token_ids(body, context))
    runs = prompt_runs(
        context, body, request.headers, answer_id, [prompt], _length(body), _logprobs(body, limits)
    )
    answer = ChatFormat(answer_id, model, body, runs[0], TokenNames.of(context.text, body))
    job = GenerationJob(request.state.request_id, context.backend, runs, answer, body.stream, reports)
    return GenerationResponse(job)


async def chat_token_ids(body: ChatOfMessages, context: ApiContext) -> list[int]:
    """The prompt that a conversation becomes."""
    if body.continue_final_message and body.add_generation_prompt:
        raise invalid("continue_final_message", "add_generation_prompt must be false with it")
    variables = body.chat_template_kwargs
    if body.reasoning_effort is not None:
        variables = {"reasoning_effort": body.reasoning_effort, **variables}
    text = context.text.render_chat(
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        variables=variables,
    )
    context.limits.check_text(text, context.text, "messages")
    return await context.text.encode(text, add_special_tokens=body.add_special_tokens)


def _length(body: ChatCompletionRequest) -> OutputLength:
    if body.max_completion_tokens is not None:
        return OutputLength("max_completion_tokens", body.max_completion_tokens)
    return OutputLength("max_tokens", body.max_tokens)


def _logprobs(body: ChatCompletionRequest, limits: Limits) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise invalid(
            "top_logprobs", f"logprobs must be true with it, not false ({body.top_logprobs} asked for)"
        )
    return limits.logprobs(body.top_logprobs, "top_logprobs") if body.logprobs else None


class ChatFormat:
    """Writes chat completions; an `AnswerFormat`."""

    def __init__(
        self, answer_id: str, model: str, body: ChatCompletionRequest, run: PromptRun, names: TokenNames
    ) -> None:
        self._id = answer_id
        self._model = model
        self._body = body
        self._request = run.request
        self._names = names
        self._created = int(time.time())
        self._wants_every_token = body.logprobs or body.return_token_ids

    def opening(self, usage: OptionalUsage) -> Iterator[ChatChunk]:
        for index in range(self._request.n):
            chunk = self._chunk([ChatChunkChoice(index, ChatDelta("assistant", ""))], usage)
            if index == 0 and self._body.return_token_ids:
                chunk.prompt_token_ids = list(self._request.token_ids)
            yield chunk

    def chunk(self, delta: ChoiceDelta, usage: OptionalUsage) -> ChatChunk | None:
        finish_reason = delta.finish_reason
        if not (delta.text or finish_reason or self._wants_every_token):
            return None
        choice = ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(content=delta.text),
            logprobs=self._logprobs([delta]),
            finish_reason=None if finish_reason is None else finish_reason.value,
            stop_reason=UNSET if finish_reason is None else delta.stop_reason,
            token_ids=[delta.token.token_id] if self._body.return_token_ids else UNSET,
        )
        return self._chunk([choice], usage)

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        return self._chunk([], usage)

    def whole(self, choices: Sequence[list[ChoiceDelta]], usage: Usage) -> ChatCompletion:
        wants_ids = self._body.return_token_ids
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(deltas) for deltas in choices],
            usage=usage,
            prompt_token_ids=list(self._request.token_ids) if wants_ids else UNSET,
        )

    def _choice(self, deltas: list[ChoiceDelta]) -> ChatChoice:
        last = deltas[-1]
        assert last.finish_reason is not None, "a run ends when every choice has an ending"
        return ChatChoice(
            index=last.index,
            message=ChatMessage("".join(delta.text for delta in deltas)),
            logprobs=self._logprobs(deltas),
            finish_reason=last.finish_reason.value,
            stop_reason=last.stop_reason,
            token_ids=[delta.token.token_id for delta in deltas] if self._body.return_token_ids else UNSET,
        )

    def _logprobs(self, deltas: Sequence[ChoiceDelta]) -> ChatLogprobs | None:
        return chat_logprobs((delta.token for delta in deltas), self._names) if self._body.logprobs else None

    def _chunk(self, choices: list[ChatChunkChoice], usage: OptionalUsage) -> ChatChunk:
        return ChatChunk(self._id, self._created, self._model, choices, usage=usage)
