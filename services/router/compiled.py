"""The router's native code (`csrc/`, described by `native.pyi`); None where it was installed without a compiler."""

from __future__ import annotations

try:
    from baton.router import native as native
except ImportError:
    native = None  # type: ignore[assignment]


def is_native_built() -> bool:
    return native is not None
