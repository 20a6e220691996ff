"""Logprobs in OpenAI's two shapes: a list of tokens for chat, columns for completions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from baton.request import Token
from baton.router.api.prompt_run import ChoiceDelta
from baton.router.api.schema import GenerationBody
from baton.router.tokenizer import TextProcessor

# JSON has no -Infinity; OpenAI and vLLM show this for a token that cannot be drawn.
_LOWEST = -9999.0


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    """Entry i of each column belongs to token i. `top_logprobs` has the token itself among the others."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class TokenNames:
    """How tokens are called in logprobs.

    A token that is not whole characters has no text of its own; OpenAI then writes its bytes as escapes. Under
    `as_ids` every token is called `token_id:N`, as vLLM does, so that no two share a name.
    """

    def __init__(self, text: TextProcessor, *, as_ids: bool) -> None:
        self._text = text
        self._as_ids = as_ids

    @classmethod
    def of(cls, text: TextProcessor, body: GenerationBody) -> TokenNames:
        return cls(text, as_ids=body.return_tokens_as_token_ids)

    def bytes_of(self, token_id: int) -> list[int]:
        return list(self._text.pieces[token_id])

    def name(self, token_id: int, prefix_of_escapes: str = "") -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        piece = self._text.pieces[token_id]
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return prefix_of_escapes + "".join(f"\\x{byte:02x}" for byte in piece)


def chat_logprobs(tokens: Iterable[Token], names: TokenNames) -> ChatLogprobs:
    """The `logprobs` of a chat choice or of one of its chunks."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                names.name(token.token_id),
                _finite(token.logprob),
                names.bytes_of(token.token_id),
                [
                    TopLogprob(names.name(token_id), _finite(logprob), names.bytes_of(token_id))
                    for token_id, logprob in token.top_logprobs
                ],
            )
            for token in tokens
        ]
    )


def completion_logprobs(deltas: Iterable[ChoiceDelta], names: TokenNames) -> CompletionLogprobs:
    """The `logprobs` of a completion choice or of one of its chunks."""
    columns = CompletionLogprobs([], [], [], [])
    for delta in deltas:
        token = delta.token
        name = names.name(token.token_id, "bytes:")
        top = {names.name(token_id, "bytes:"): _finite(logprob) for token_id, logprob in token.top_logprobs}
        columns.text_offset.append(delta.text_offset)
        columns.token_logprobs.append(_finite(token.logprob))
        columns.tokens.append(name)
        columns.top_logprobs.append({name: _finite(token.logprob)} | top if top else None)
    return columns


def _finite(logprob: float | None) -> float:
    return _LOWEST if logprob is None else max(logprob, _LOWEST)
