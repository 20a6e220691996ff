"""Attention backends behind one contract (`base.py`), found by name and imported when asked for.

`reference` is plain torch, runs everywhere, and is what the others are checked against.
"""

from __future__ import annotations

from importlib import import_module

from baton.engine.attention.base import AttentionBackend
from baton.errors import ConfigError

BACKENDS = {
    "cpu": "baton.engine.attention.cpu:CpuAttention",
    "reference": "baton.engine.attention.reference:ReferenceAttention",
}


def load_backend(name: str) -> AttentionBackend:
    """A new backend; raises ConfigError listing the choices where `name` is none of them."""
    if name not in BACKENDS:
        raise ConfigError(
            f"attention backend {name!r} is unknown (choices: {', '.join(BACKENDS)})",
            field="attention_backend",
        )
    module, _, class_name = BACKENDS[name].partition(":")
    backend = getattr(import_module(module), class_name)()
    assert isinstance(backend, AttentionBackend)
    return backend
