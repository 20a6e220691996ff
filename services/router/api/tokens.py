"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from baton.router.api.chat import chat_token_ids
from baton.router.api.context import ApiContext, Context
from baton.router.api.errors import invalid, json_response
from baton.router.api.json_body import JsonRoute
from baton.router.api.schema import ChatOfMessages, DetokenizeRequest, TokenizeRequest

router = APIRouter(route_class=JsonRoute, tags=["Tokens"])


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


@router.post("/tokenize", summary="Token ids of a text or a conversation")
async def tokenize(body: TokenizeRequest, context: Context) -> Response:
    """Exactly the ids that /v1/completions would use for `prompt`, or /v1/chat/completions for `messages`."""
    context.limits.check_model(body.model)
    token_ids = await _token_ids(body, context)
    names = await asyncio.to_thread(context.text.token_texts, token_ids) if body.return_token_strs else None
    limit_tokens = context.backend.model.max_model_tokens
    return json_response(Tokenized(len(token_ids), limit_tokens, token_ids, names))


@router.post("/detokenize", summary="Text of token ids")
async def detokenize(body: DetokenizeRequest, context: Context) -> Response:
    """Special tokens are kept."""
    context.limits.check_model(body.model)
    context.limits.check_token_ids(body.tokens, "tokens")
    text = await asyncio.to_thread(context.text.decode, body.tokens, skip_special_tokens=False)
    return json_response(Detokenized(text))


async def _token_ids(body: TokenizeRequest, context: ApiContext) -> list[int]:
    if body.prompt is not None and body.messages is None:
        add_special_tokens = body.add_special_tokens is not False
        return await context.text.encode(body.prompt, add_special_tokens=add_special_tokens)
    if body.prompt is None and body.messages is not None:
        chat = ChatOfMessages(
            messages=body.messages,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            add_special_tokens=body.add_special_tokens is True,
            chat_template_kwargs=body.chat_template_kwargs,
        )
        return await chat_token_ids(chat, context)
    raise invalid("prompt", "exactly one of prompt and messages is expected")
