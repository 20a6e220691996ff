"""The types of request fields: what JSON they take and how a wrong value is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

_MAX_JSON_DEPTH = 32

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


class Body(BaseModel):
    """A JSON object of a request.

    Types are strict: "1" is no number and 1 is no boolean. Fields that are not declared are ignored, as
    OpenAI's clients send what newer servers understand; those among them that would change the result are
    declared, in `unsupported.py`, and refused. A null means that the field was left out.
    """

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, value: object) -> object:
        if isinstance(value, dict):
            return {name: content for name, content in value.items() if content is not None}
        return value


def only(*allowed: object) -> Callable[[object], object]:
    """Refuses a field that Baton does not support, but for values that leave the result as it is."""

    def check(value: object) -> object:
        if value in allowed:
            return value
        choices = " or ".join(["null", *(str(choice) for choice in allowed)])
        raise PydanticCustomError(
            "unsupported", "this feature is not supported; only {choices}", {"choices": choices}
        )

    return check


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _one_or_list(value: object) -> str:
    return "<list>" if _is_list(value) else "<one>"


def _check_depth(value: JsonValue) -> JsonValue:
    """Free-form JSON goes through recursive code (templates, encoders), so its depth is limited here."""
    level: list[JsonValue] = [value]
    for _ in range(_MAX_JSON_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return value
    raise PydanticCustomError("too_deep", "nested deeper than {limit} levels", {"limit": _MAX_JSON_DEPTH})


FreeJson: TypeAlias = Annotated[Any, AfterValidator(_check_depth)]
"""Any JSON value of bounded depth."""

Identifier: TypeAlias = Annotated[str, Field(min_length=1, max_length=512)]
"""A name that the client chose for a session, a tenant or a user."""

TokenId: TypeAlias = Annotated[int, Field(ge=0, le=INT32_MAX)]
TokenIds: TypeAlias = list[TokenId]

NonEmptyString: TypeAlias = Annotated[str, Field(min_length=1)]

StopField: TypeAlias = Annotated[
    Annotated[NonEmptyString, Tag("<one>")] | Annotated[list[NonEmptyString], Tag("<list>")],
    Discriminator(_one_or_list),
]


def _prompt_kind(value: object) -> str:
    """By the first entry; a list that mixes kinds is wrong at the first that differs."""
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else ""
    return "<token ids>" if isinstance(first, int) else "<lists>" if _is_list(first) else "<texts>"


PromptField: TypeAlias = Annotated[
    Annotated[NonEmptyString, Tag("<text>")]
    | Annotated[list[NonEmptyString], Field(min_length=1), Tag("<texts>")]
    | Annotated[TokenIds, Tag("<token ids>")]
    | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Tag("<lists>")],
    Discriminator(_prompt_kind),
]
