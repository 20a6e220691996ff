"""What a worker may announce of itself: figures that can be reckoned with, and an address that can be dialled."""

from __future__ import annotations

import math
from dataclasses import asdict

from baton.errors import InvalidRequest
from baton.fleet import WorkerInfo, WorkerLoad

_LAST_PORT = 65_535


def require_sound(worker: WorkerInfo) -> None:
    """Raises InvalidRequest naming worker, field and value."""
    for field, count in (
        ("block_size", worker.block_size),
        ("model.max_model_tokens", worker.model.max_model_tokens),
        ("model.vocab_size", worker.model.vocab_size),
    ):
        if count < 1:
            raise _nonsense(worker, field, count, "at least 1")
    host, _, port = worker.address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= _LAST_PORT:
        raise _nonsense(worker, "address", worker.address, "host:port")


def require_sound_load(load: WorkerLoad) -> None:
    """Raises InvalidRequest with the field where the figures of one load contradict each other."""
    blocks = load.kv_blocks
    held = blocks.free + blocks.cached + blocks.used + blocks.reserved
    if held != blocks.total:
        raise InvalidRequest(f"kv_blocks has {held} blocks of {blocks.total}", field="kv_blocks")
    for field, value in asdict(load.handoffs).items():
        if not math.isfinite(value) or value < 0:
            raise InvalidRequest(f"handoffs.{field} is {value}, not at least 0 and finite", field="handoffs")


def _nonsense(worker: WorkerInfo, field: str, value: object, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"worker {worker.worker_id!r} announces {field} {value!r}, not {wanted}", field=field
    )
