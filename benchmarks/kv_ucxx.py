"""Plain ucxx for `kvtransfer.py`: a hand-off is one tag message, gathered before and scattered after.

Runs in `.venv-peers/ucxx`. One message, for a message a block is several times slower. Both sides poll.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import kv_pair
import numpy as np
import ucxx._lib.libucxx as ucx
from kv_pair import Blocks, Case, Ids
from ucxx._lib.arr import Array

DATA, ACKNOWLEDGEMENT = ucx.UCXXTag(1), ucx.UCXXTag(2)


@functools.cache
def worker() -> Any:
    return ucx.UCXWorker(ucx.UCXContext(feature_flags=(ucx.Feature.TAG,)))


@functools.cache
def endpoint(address: bytes) -> Any:
    """One for all cases: over TCP, closing it waits for a peer that does not poll at that time."""
    return ucx.UCXEndpoint.create_from_worker_address(
        worker(), ucx.UCXAddress.create_from_buffer(address), False
    )


class End:
    def __init__(self, case: Case) -> None:
        self.blocks: Blocks = kv_pair.fresh_blocks(case)
        self.buffer = np.zeros((case.num_blocks, case.block_bytes), np.uint8)
        self.acknowledgement = np.zeros(1, np.uint8)
        self.worker = worker()

    def wait(self, request: Any) -> None:
        while not request.completed:
            self.worker.progress()
        request.check_error()

    def close(self) -> None:
        """The connection serves the next case."""


class UcxxReceiver(End, kv_pair.Receiver):
    def __init__(self, case: Case, arguments: list[str]) -> None:
        super().__init__(case)

    def hello(self) -> bytes:
        return bytes(self.worker.address)

    def greet(self, sender: bytes) -> None:
        self.endpoint = endpoint(sender)

    def offer(self, block_ids: Ids) -> None:
        self.block_ids = block_ids
        self.request = self.endpoint.tag_recv(Array(self.buffer), tag=DATA)

    def settle(self) -> None:
        self.wait(self.request)
        self.blocks[self.block_ids] = self.buffer
        self.wait(self.endpoint.tag_send(Array(self.acknowledgement), tag=ACKNOWLEDGEMENT))


class UcxxSender(End, kv_pair.Sender):
    def __init__(self, case: Case, arguments: list[str], hello: bytes) -> None:
        super().__init__(case)
        self.endpoint = endpoint(hello)

    def hello(self) -> bytes:
        return bytes(self.worker.address)

    def send(self, offer: None, block_ids: Ids) -> tuple[float, Callable[[], None]]:
        acknowledged = self.endpoint.tag_recv(Array(self.acknowledgement), tag=ACKNOWLEDGEMENT)
        self.blocks.take(block_ids, axis=0, out=self.buffer, mode="clip")
        self.wait(self.endpoint.tag_send(Array(self.buffer), tag=DATA))
        self.wait(acknowledged)
        return time.monotonic(), lambda: None


if __name__ == "__main__":
    kv_pair.main(UcxxReceiver, UcxxSender)
