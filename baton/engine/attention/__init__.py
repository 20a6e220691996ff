"""Attention backends behind one contract (`base.py`), found by name and imported when asked for.

`reference` is plain torch, runs everywhere, and is what the others are checked against. `auto` is the first here
that can serve, so what stands behind `reference` is chosen by its name alone.
"""

from __future__ import annotations

from importlib import import_module

import torch

from baton.engine.attention.base import AttentionBackend
from baton.errors import ConfigError

AUTO = "auto"
BACKENDS = {
    "cpu": "baton.engine.attention.cpu:CpuAttention",
    "triton": "baton.engine.attention.triton:TritonAttention",
    "reference": "baton.engine.attention.reference:ReferenceAttention",
    "flashinfer": "baton.engine.attention.flashinfer:FlashInferAttention",
}


def load_backend(name: str, device: torch.device, head_dim: int, dtype: torch.dtype) -> AttentionBackend:
    """A new backend for a model on `device`; raises as `choose_backend` does."""
    return choose_backend(name, device, head_dim, dtype)()


def choose_backend(
    name: str, device: torch.device, head_dim: int, dtype: torch.dtype
) -> type[AttentionBackend]:
    """The class of the backend meant. Raises ConfigError listing the choices where `name` is none of them, and with
    the reason where it cannot serve a model with such heads in `dtype` on `device`."""
    if name == AUTO:
        return next(kind for kind in map(_load, BACKENDS) if kind.hindrance(device, head_dim, dtype) is None)
    if name not in BACKENDS:
        raise ConfigError(
            f"attention backend {name!r} is unknown (choices: {', '.join((AUTO, *BACKENDS))})",
            field="attention",
        )
    kind = _load(name)
    hindrance = kind.hindrance(device, head_dim, dtype)
    if hindrance is not None:
        raise ConfigError(f"attention backend {name!r} {hindrance}", field="attention")
    return kind


def _load(name: str) -> type[AttentionBackend]:
    module, _, class_name = BACKENDS[name].partition(":")
    kind: type[AttentionBackend] = getattr(import_module(module), class_name)
    assert issubclass(kind, AttentionBackend)
    return kind
