"""Baton's side of `kvtransfer.py`: a pair of agents. Arguments: scheme, and `unchecked` for no checksums."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import kv_pair
import numpy as np
from kv_pair import Case, Ids

from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import KVLayout, TransferResult
from baton.kvtransfer.memory import shareable_memory

SECRET = b"a benchmark's secret"
LAYOUT = KVLayout(model="benchmark", dtype="uint8", block_size=16, layers=1, kv_heads=1, head_dim=1)
TTL_S = 60.0


class End:
    def __init__(self, case: Case, arguments: list[str]) -> None:
        scheme, *options = arguments
        self.memory = shareable_memory(case.pool_blocks, case.block_bytes)
        self.memory.blocks.fill_(1)
        self.blocks = self.memory.blocks.numpy()
        self.positions = np.arange(case.num_blocks, dtype=np.int32)
        self.agent = TransferAgent(
            self.memory, LAYOUT, SECRET, (scheme,), checksum="unchecked" not in options
        )

    def close(self) -> None:
        self.agent.close()
        assert self.memory.fd is not None
        os.close(self.memory.fd)


class Outcome:
    """Waits for a transfer's end."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._result: TransferResult | None = None

    def set(self, result: TransferResult) -> None:
        self._result = result
        self._ended.set()

    def wait(self) -> float:
        """When it came, on the clock of `time.monotonic`."""
        self._ended.wait(TTL_S)
        assert self._result is not None, "no end within the ticket's time"
        if self._result.error is not None:
            raise self._result.error
        return self._result.done_at_s


class BatonReceiver(End, kv_pair.Receiver):
    def hello(self) -> Any:
        return None

    def offer(self, block_ids: Ids) -> bytes:
        self.outcome = Outcome()
        _, ticket = self.agent.expect(self.positions, block_ids, TTL_S, self.outcome.set)
        return ticket

    def settle(self) -> None:
        self.outcome.wait()


class BatonSender(End, kv_pair.Sender):
    def send(self, offer: bytes, block_ids: Ids) -> tuple[float, Callable[[], None]]:
        outcome = Outcome()
        self.agent.open(offer, outcome.set).push(self.positions, block_ids)
        return outcome.wait(), lambda: None


if __name__ == "__main__":
    kv_pair.main(BatonReceiver, lambda case, arguments, hello: BatonSender(case, arguments))
