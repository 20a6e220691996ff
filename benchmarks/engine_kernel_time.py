"""How long the model's native kernels run, by standing between them and their callers."""

from __future__ import annotations

import time
from typing import Any

from baton.engine import kernels, native_layers, packed_linear
from baton.engine.attention import cpu

MODEL_KERNELS = ("run_layers", "attend", "multiply", "norm", "rotate")
CALLERS = (kernels, native_layers, packed_linear, cpu)


class KernelTime:
    """While entered, `seconds` grows by the time that the model's kernels take."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> KernelTime:
        self._native = kernels.native
        for caller in CALLERS:
            caller.native = self  # type: ignore[attr-defined]
        return self

    def __exit__(self, *_: object) -> None:
        for caller in CALLERS:
            caller.native = self._native  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._native, name)
        return self._timed(function) if name in MODEL_KERNELS else function

    def _timed(self, function: Any) -> Any:
        def call(*fields: int) -> None:
            start = time.perf_counter()
            function(*fields)
            self.seconds += time.perf_counter() - start

        return call
