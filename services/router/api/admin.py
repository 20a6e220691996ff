"""Changes to the fleet, by hand or by a script."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from baton.fleet import Role
from baton.router.api.context import Context
from baton.router.api.errors import json_response
from baton.router.api.fields import Body
from baton.router.api.json_body import JsonRoute
from baton.router.control import DEFAULT_DRAIN_TIMEOUT_S

router = APIRouter(route_class=JsonRoute, tags=["Fleet"])


class RoleBody(Body):
    role: Literal["prefill", "decode"]
    drain_timeout_s: float = Field(
        default=DEFAULT_DRAIN_TIMEOUT_S, ge=0, le=3600, description="What is left by then goes on elsewhere"
    )


@router.post("/workers/{worker_id}/role", summary="Make a worker serve in another role")
async def change_role(worker_id: str, body: RoleBody, context: Context) -> Response:
    """Answers once the worker serves in its new role, with its weights and its cache as they were. The streams of a
    decode worker move to others; no request fails."""
    change = await context.backend.change_role(worker_id, Role(body.role), body.drain_timeout_s)
    return json_response(change)
