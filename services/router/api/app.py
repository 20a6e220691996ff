"""Puts the HTTP face together."""

from __future__ import annotations

from fastapi import FastAPI

from baton import __version__
from baton.router.api import admin, chat, completions, errors, info, sessions, tokens
from baton.router.api.backend import Backend
from baton.router.api.context import ApiContext
from baton.router.api.examples import ERROR_RESPONSES
from baton.router.api.middleware import BearerKeys, RequestId
from baton.router.api.settings import ApiSettings
from baton.router.tokenizer import TextProcessor

_DESCRIPTION = """\
OpenAI's API over a disaggregated fleet, with vLLM's extensions. Fields that are not listed are ignored, except
those that would change the result: these are refused. Errors have OpenAI's shape and `param` names the field.

Headers that requests may carry: `X-Session-ID` (requests of one session go to the same workers), `X-Request-ID`
(echoed), `X-Tenant-ID` (whose share of the fleet it takes), `x-slo-ttft-ms` and `x-slo-tpot-ms` (objectives).
Answers tell in `x-baton-prefill` and `x-baton-decode` which workers they come from.
"""


def create_app(backend: Backend, text: TextProcessor, settings: ApiSettings) -> FastAPI:
    """The ASGI application. `text` belongs to the model that `backend` serves."""
    app = FastAPI(
        title="Baton",
        version=__version__,
        description=_DESCRIPTION,
        responses=ERROR_RESPONSES,
        docs_url=None,  # FastAPI's pages load their scripts from a public network
        redoc_url=None,
    )
    app.state.context = ApiContext(backend, text, settings)
    for module in (chat, completions, tokens, sessions, info, admin):
        app.include_router(module.router)
    errors.install(app)
    if settings.api_keys:
        app.add_middleware(BearerKeys, keys=settings.api_keys)
    app.add_middleware(RequestId)  # the last one added is the outermost
    return app
