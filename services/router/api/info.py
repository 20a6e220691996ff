"""What the server tells of itself: models, health, workers, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from baton import __version__
from baton.errors import ModelNotFound, Unavailable
from baton.router.api.backend import ServedModel
from baton.router.api.context import Context
from baton.router.api.errors import error_body, json_response

router = APIRouter()

_PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def _entry(name: str, model: ServedModel) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": model.created,
        "owned_by": "baton",
        "root": model.model_id,
        "parent": None,
        "max_model_len": model.max_model_tokens,
    }


@router.get("/v1/models", tags=["OpenAI"], summary="The names of the model served")
async def list_models(context: Context) -> Response:
    model = context.backend.model
    return json_response({"object": "list", "data": [_entry(name, model) for name in model.names]})


@router.get("/v1/models/{name:path}", tags=["OpenAI"], summary="One model")
async def get_model(name: str, context: Context) -> Response:
    model = context.backend.model
    if name not in model.names:
        raise ModelNotFound(f"model: {name!r:.200} is not served here", field="model")
    return json_response(_entry(name, model))


@router.get("/health", tags=["Health"], summary="200 when a request can be served, else 503")
@router.get("/ready", tags=["Health"], summary="The same, under the name that orchestrators use")
async def health(context: Context) -> Response:
    return _state(context.backend.is_ready(), "no pair of workers can serve now")


@router.get("/live", tags=["Health"], summary="200 while this process is sound")
async def live(context: Context) -> Response:
    return _state(context.backend.is_live(), "this process should be restarted")


def _state(is_good: bool, problem: str) -> Response:
    if is_good:
        return json_response({"status": "ok"})
    return json_response(error_body(Unavailable(problem)), Unavailable.http_status)


@router.get("/workers", tags=["Fleet"], summary="The workers known now")
async def workers(context: Context) -> Response:
    return json_response({"workers": list(context.backend.fleet())})


@router.get("/server_info", tags=["Fleet"], summary="Configuration and build")
async def server_info(context: Context) -> Response:
    return json_response({"version": __version__, **context.backend.server_info()})


@router.get("/version", tags=["Fleet"], summary="Version of this server")
async def version() -> Response:
    return json_response({"version": __version__})


@router.get("/metrics", tags=["Fleet"], summary="Prometheus metrics")
async def metrics(context: Context) -> Response:
    render = context.settings.metrics
    return Response(b"" if render is None else render(), media_type=_PROMETHEUS_TEXT)
