"""A worker and its load as they are announced to a registry, every field filled."""

from __future__ import annotations

from baton.fleet import HandoffTotals, KVBlocks, ModelInfo, Role, WorkerInfo, WorkerLoad, WorkerProfile

SECRET = b"a secret of the test's own"
WORKER = WorkerInfo(
    worker_id="decode-0",
    epoch=b"12345678",
    role=Role.DECODE,
    address="127.0.0.1:1",
    pid=7,
    model=ModelInfo("m", "fingerprint", 2048, 320, (1, 2)),
    kv_layout=bytes(range(256)) * 3,
    block_size=16,
    profile=WorkerProfile(1000.0, 0.01, 1e9, 1e-7, 1e-3, 1e-6),
    version="0",
    schemes=("shm", "tcp"),
    max_running=64,
)
LOAD = WorkerLoad(1, 2, 3, KVBlocks(10, 4, 3, 2, 1), 5, 6, 7, HandoffTotals(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))
