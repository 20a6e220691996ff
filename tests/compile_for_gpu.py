"""Compiles every Triton kernel for a GPU that is not there, down to machine code; a process of its own, since the
interpreter that tests run under takes the compiler's place.

`python compile_for_gpu.py CAPABILITY`, as 90 for Hopper.
"""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from baton.engine.triton import attention, pointwise

INTEGERS = {"query_start": "*i32", "context_lens": "*i32", "block_tables": "*i32", "slots": "*i64"}
INTEGERS |= {"tile_sequence": "*i32", "tile_first": "*i32"}
FLOATS = {"partial": "*fp32", "sums": "*fp32", "scale": "fp32", "epsilon": "fp32"}
OF_THE_MODEL = ("query", "kv", "output", "cos", "sin", "x", "weight", "gate_up")


def compile_kernel(kernel: Any, dtype: str, capability: int, **constants: object) -> None:
    """Arguments are told by their names: integers, unless they are listed above."""
    types = INTEGERS | FLOATS | {name: f"*{dtype}" for name in OF_THE_MODEL}
    if kernel is pointwise._rotate_and_store:
        types["heads"] = f"*{dtype}"
    signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(
        constants, "constexpr"
    )
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    binary = triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", capability, 32))
    assert binary.asm["cubin"], "there is no machine code"


def compile_all(capability: int) -> None:
    widths = {"HEAD_DIM": 80, "WIDTH": 128}
    shape = widths | {"GROUP": 4, "BLOCK_SIZE": 16, "TILE_TOKENS": 16, "ROWS": 64, "KEYS": 64}
    for dtype, has_window, splits in (("bf16", False, 1), ("fp32", True, 4)):
        precision = "ieee" if dtype == "fp32" else "tf32"
        constants = shape | {"SPLITS": splits, "HAS_WINDOW": has_window, "PRECISION": precision}
        compile_kernel(attention._attend, dtype, capability, **constants, WIDEN=False)
    compile_kernel(attention._merge, "bf16", capability, **widths, SPLITS=6, PADDED_SPLITS=8)
    compile_kernel(pointwise._rms_norm, "bf16", capability, HEADS=1, WIDE=4096)
    compile_kernel(
        pointwise._rotate_and_store, "bf16", capability, HEAD_DIM=80, HALF=64, BLOCK_SIZE=16, ROTATE=True
    )
    compile_kernel(pointwise._silu_times, "bf16", capability, COLUMNS=1024)


if __name__ == "__main__":
    compile_all(int(sys.argv[1]))
