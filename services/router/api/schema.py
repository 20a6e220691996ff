"""The bodies of requests: OpenAI's fields, and those that vLLM and its users added.

Limits that depend on the model or on the configuration are in `limits.py`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from baton.router.api.fields import (
    INT32_MAX,
    INT64_MAX,
    Body,
    Identifier,
    NonEmptyString,
    PromptField,
    StopField,
    TokenId,
    TokenIds,
)
from baton.router.api.messages import Messages, TemplateVariables
from baton.router.api.unsupported import UnsupportedInChat, UnsupportedInCompletion

Penalty = Annotated[float, Field(ge=-2, le=2)]


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class SessionBody(Body):
    """Whom a request belongs to, where no header says it."""

    cache_salt: Identifier | None = Field(
        default=None, description="Prefix cache shared only under the same salt"
    )
    session_id: Identifier | None = Field(
        default=None, description="Requests of one session go to the same workers"
    )
    user: Identifier | None = None


class GenerationBody(SessionBody):
    """What both endpoints share."""

    model: str | None = Field(default=None, description="One of /v1/models; left out, the model served")
    max_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX, description="Tokens to generate at most")
    min_tokens: int = Field(
        default=0, ge=0, le=INT32_MAX, description="Tokens before which nothing stops a choice"
    )
    n: int = Field(default=1, ge=1, le=INT32_MAX, description="Choices over each prompt")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 takes the most likely token")
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=INT32_MAX, description="0 and -1 are off")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, description="Token id, as a string, to what is added to its logit"
    )
    seed: int | None = Field(
        default=None, ge=-INT64_MAX - 1, le=INT64_MAX, description="Same seed, same tokens"
    )
    stop: StopField = Field(default_factory=list, description="Strings that end a choice")
    stop_token_ids: list[TokenId] = Field(default_factory=list)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(default=False, description="Also answer with token ids, as in vLLM")
    return_tokens_as_token_ids: bool = Field(default=False, description="Name tokens token_id:N in logprobs")
    priority: int = Field(default=0, ge=-INT32_MAX, le=INT32_MAX, description="Lower runs first")


class CompletionRequest(GenerationBody, UnsupportedInCompletion):
    """Body of /v1/completions."""

    prompt: PromptField = Field(description="Text, texts, token ids, or lists of token ids")
    echo: bool = Field(default=False, description="Begin the text with the prompt")
    logprobs: int | None = Field(default=None, ge=0, le=INT32_MAX, description="Most likely tokens to report")
    best_of: int | None = Field(default=None, ge=1, le=INT32_MAX, description="Only the value of n")
    add_special_tokens: bool = Field(default=True, description="Let the tokenizer add its BOS to a text")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "Permission is hereby granted", "max_tokens": 32, "temperature": 0}]
        }
    )


class ChatOfMessages(Body):
    """How messages become a prompt."""

    messages: Messages
    add_generation_prompt: bool = Field(default=True, description="End the prompt where the assistant begins")
    continue_final_message: bool = Field(
        default=False, description="Leave the last message open for the model"
    )
    add_special_tokens: bool = Field(default=False, description="Add BOS although the template writes it")
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    reasoning_effort: NonEmptyString | None = Field(
        default=None, description="A variable of the chat template"
    )


class ChatCompletionRequest(GenerationBody, ChatOfMessages, UnsupportedInChat):
    """Body of /v1/chat/completions."""

    max_completion_tokens: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Goes before max_tokens; left out, what the context has left",
    )
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=INT32_MAX)

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [{"role": "user", "content": "Who may copy this?"}],
                    "max_tokens": 64,
                    "stream": True,
                }
            ]
        }
    )


class TokenizeRequest(Body):
    """Body of /tokenize: a text, or messages as a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(default=None, description="For a text true, for messages false")
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    return_token_strs: bool = False

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Hello, world"}]})


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: str | None = None
    tokens: TokenIds

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [1, 2, 3]}]})
