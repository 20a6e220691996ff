"""What every endpoint works with; built once an application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from baton.router.api.backend import Backend
from baton.router.api.limits import Limits
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor


@dataclass(frozen=True, slots=True)
class ApiContext:
    backend: Backend
    text: TextProcessor
    settings: ApiSettings

    @property
    def limits(self) -> Limits:
        return Limits(self.backend.model, self.settings)


async def context_of(request: Request) -> ApiContext:
    context = request.app.state.context
    assert isinstance(context, ApiContext), "create_app sets it"
    return context


Context = Annotated[ApiContext, Depends(context_of)]
