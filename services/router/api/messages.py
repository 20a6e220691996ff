"""Chat messages: what clients send and what a chat template is given."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from baton.router.api.fields import Body, FreeJson


class TextPart(Body):
    type: Literal["text"]
    text: str


def _content_kind(value: object) -> str:
    return "<parts>" if isinstance(value, list) else "<text>"


# Far above any conversation; keeps a body full of empty objects from holding up the event loop.
_Length = Field(min_length=1, max_length=16_384)

Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[TextPart], _Length, Tag("<parts>")],
    Discriminator(_content_kind),
]


class FunctionOfCall(Body):
    name: str
    arguments: str


class ToolCall(Body):
    """A call that the model made in an earlier turn."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionOfCall


class Message(Body):
    """One turn. Text parts are joined by line breaks, as in vLLM."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(default=None, validate_default=True)
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None

    @field_validator("content")
    @classmethod
    def _content_is_given(
        cls, content: str | list[TextPart] | None, info: ValidationInfo
    ) -> str | list[TextPart] | None:
        if content is None and info.data.get("role") != "assistant":
            raise PydanticCustomError("missing", "Field required")
        return content

    def for_template(self) -> dict[str, object]:
        """The message as templates expect it: absent fields left out, a call's arguments as an object."""
        message: dict[str, object] = {"role": self.role, "content": self._text()}
        optional = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
            "tool_calls": [_call_for_template(call) for call in self.tool_calls or ()] or None,
        }
        return message | {key: value for key, value in optional.items() if value is not None}

    def _text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


def _call_for_template(call: ToolCall) -> dict[str, object]:
    function = {"name": call.function.name, "arguments": _parsed(call.function.arguments)}
    return {"id": call.id, "type": call.type, "function": function}


def _parsed(arguments: str) -> Any:
    """OpenAI has arguments as JSON text, which a model may have got wrong; then they stay text."""
    try:
        return json.loads(arguments)
    except (json.JSONDecodeError, RecursionError):
        return arguments


Messages = Annotated[list[Message], _Length]
TemplateVariables = dict[str, FreeJson]
