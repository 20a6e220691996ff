"""Placement policies behind one contract (`base.py`), found by name and imported when asked for.

`predicted` is the default; the others are there to be compared with it, and for whoever wants just them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from baton.errors import ConfigError

if TYPE_CHECKING:
    from baton.router.policies.base import Policy

DEFAULT_POLICY = "predicted"
POLICIES = {
    "predicted": "baton.router.policies.predicted:Predicted",
    "prefix": "baton.router.policies.prefix:Prefix",
    "session": "baton.router.policies.session:Session",
    "least_loaded": "baton.router.policies.least_loaded:LeastLoaded",
    "power_of_two": "baton.router.policies.power_of_two:PowerOfTwo",
    "round_robin": "baton.router.policies.round_robin:RoundRobin",
}


def require_policy(name: str) -> None:
    """Raises ConfigError listing the choices where `name` is none of them."""
    if name not in POLICIES:
        raise ConfigError(
            f"placement policy {name!r} is unknown (choices: {', '.join(POLICIES)})", field="policy"
        )


def load_policy(name: str) -> Policy:
    """Raises as `require_policy` does."""
    require_policy(name)
    module, _, class_name = POLICIES[name].partition(":")
    policy: Policy = getattr(import_module(module), class_name)()
    return policy
