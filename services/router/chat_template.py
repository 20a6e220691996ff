"""A model's chat template: messages in, prompt text out, as transformers' `apply_chat_template` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from baton.errors import InvalidRequest, ModelFolderError

# What a template can raise over messages that it was not written for. A template is the model author's
# program and the messages are its input, so these mean wrong input and not a broken server.
_RENDERING_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

# Set by the server; a client that could replace them would escape the checks made on messages.
_RESERVED_VARIABLES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})

_FINAL_MESSAGE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text, from `chat_template.jinja` or `tokenizer_config.json`.
        special_tokens: template variables such as `bos_token` and `eos_token`.
        origin: the file that `source` came from, for messages.

    Raises:
        ModelFolderError: `source` is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], origin: str = "chat template") -> None:
        self._special_tokens = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFolderError(f"{origin}: line {error.lineno}: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt text of a conversation.

        Args:
            messages: dicts with `role`, `content` and what else the template reads.
            continue_final_message: leave the last message open, so that the model goes on writing it.
            variables: further template variables (`chat_template_kwargs`).

        Raises:
            InvalidRequest: the template refuses the messages, or a variable is one that the server sets.
        """
        variables = variables or {}
        if reserved := _RESERVED_VARIABLES & variables.keys():
            name = min(reserved)
            raise InvalidRequest(
                f"chat_template_kwargs.{name}: set by the server, and cannot be replaced",
                field=f"chat_template_kwargs.{name}",
            )
        conversation = [_with_reasoning_names(message) for message in messages]
        if continue_final_message:
            conversation[-1]["content"] = f"{conversation[-1]['content']}{_FINAL_MESSAGE_MARK}"
        try:
            rendered = self._template.render(
                messages=conversation,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**self._special_tokens, **variables},
            )
        except _RENDERING_ERRORS as error:
            reason = f"{type(error).__name__}: {error}"[:500]
            raise InvalidRequest(
                f"messages: the model's chat template refused them ({reason})", field="messages"
            ) from error
        return _cut_at_mark(rendered) if continue_final_message else rendered


def _cut_at_mark(rendered: str) -> str:
    """Everything before the mark that was put behind the final message. Where the template stripped the
    message, it stripped the mark's trailing space, and the message's own has to go as well."""
    start = rendered.rfind(_FINAL_MESSAGE_MARK.strip())
    if start < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template drops or rewrites the final message",
            field="continue_final_message",
        )
    is_verbatim = rendered.startswith(_FINAL_MESSAGE_MARK, start)
    return rendered[:start] if is_verbatim else rendered[:start].rstrip()


def _with_reasoning_names(message: Mapping[str, object]) -> dict[str, object]:
    """Templates read earlier reasoning as `reasoning_content`, gpt-oss templates as `thinking`."""
    reasoning = message.get("reasoning_content")
    return {**message} if reasoning is None else {"thinking": reasoning, **message}


class _GenerationTag(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; when serving it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model has seen in training."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
