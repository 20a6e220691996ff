"""POST /finish_session."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from baton.request import session_key
from baton.router.api.context import Context
from baton.router.api.errors import invalid, json_response
from baton.router.api.fields import Identifier
from baton.router.api.headers import session_of, tenant_of
from baton.router.api.json_body import OptionalJsonRoute
from baton.router.api.schema import SessionBody

router = APIRouter(route_class=OptionalJsonRoute, tags=["Fleet"])

_NOTHING = SessionBody()


@router.post("/v1/finish_session", include_in_schema=False)  # where clients whose base is /v1 look for it
@router.post("/finish_session", summary="Tell that a session is over")
async def finish_session(
    request: Request,
    context: Context,
    session_id: Annotated[Identifier | None, Query(description="As vLLM's router takes it")] = None,
    body: SessionBody = _NOTHING,
) -> Response:
    """The KV blocks that no other session and no other prompt has used go first when room is needed. The session
    is named as in its requests, or in the query, and belongs to the same tenant. One that is unknown, or over
    already, has left nothing, which is no error."""
    session = session_of(request.headers, body) or session_id
    if session is None:
        raise invalid("session_id", "missing: it is expected in X-Session-ID, in the body or in the query")
    tenant = tenant_of(request.headers, body, context.settings.api_keys)
    return json_response(await context.backend.finish_session(session_key(tenant, session)))
