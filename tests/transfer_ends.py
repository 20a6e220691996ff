"""One end of a hand-off, in this process or in another, whose blocks say whose they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import BlockIds, KVLayout, KVMemory, SendSession, TransferResult
from baton.kvtransfer.memory import shareable_memory

SECRET = b"the cluster's secret"
LAYOUT = KVLayout(model="m", dtype="uint8", block_size=16, layers=2, kv_heads=1, head_dim=64)
WAIT_S = 10.0


def stamp(owner: int, block_id: int, block_bytes: int) -> bytes:
    """The bytes of block `block_id` in the pool of `owner`: unlike those of any other."""
    return np.random.default_rng([owner, block_id]).bytes(block_bytes)


class Outcome:
    """An `on_done` that can be waited for, and that knows if it was called more than once."""

    def __init__(self) -> None:
        self.results: list[TransferResult] = []
        self._is_called = threading.Event()

    def __call__(self, result: TransferResult) -> None:
        self.results.append(result)
        self._is_called.set()

    @property
    def is_called(self) -> bool:
        return self._is_called.is_set()

    def wait(self) -> TransferResult:
        assert self._is_called.wait(WAIT_S), "on_done was not called"
        (result,) = self.results
        return result


class Expected(NamedTuple):
    transfer_id: bytes
    ticket: bytes
    outcome: Outcome


class Opened(NamedTuple):
    session: SendSession
    outcome: Outcome


class End:
    """An agent and its pool; block i is stamped by `owner`."""

    def __init__(
        self,
        *schemes: str,
        owner: int = 1,
        num_blocks: int = 64,
        block_bytes: int = 4096,
        shareable: bool = True,
        secret: bytes = SECRET,
        layout: KVLayout = LAYOUT,
        **options: Any,
    ) -> None:
        self.owner = owner
        if shareable:
            self.memory = shareable_memory(num_blocks, block_bytes)
        else:
            self.memory = KVMemory(torch.zeros(num_blocks, block_bytes, dtype=torch.uint8))
        self.stamp_all(owner)
        try:
            self.agent = TransferAgent(self.memory, layout, secret, schemes, **options)
        except BaseException:
            self._free()
            raise

    def stamp_all(self, owner: int) -> None:
        for block_id in range(self.memory.num_blocks):
            self.write(block_id, stamp(owner, block_id, self.memory.block_bytes))

    def write(self, block_id: int, content: bytes) -> None:
        self.memory.blocks[block_id] = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    def read(self, block_id: int) -> bytes:
        return self.memory.blocks[block_id].numpy().tobytes()

    def expect(self, positions: BlockIds, block_ids: BlockIds, ttl_s: float = WAIT_S) -> Expected:
        outcome = Outcome()
        transfer_id, ticket = self.agent.expect(positions, block_ids, ttl_s, outcome)
        return Expected(transfer_id, ticket, outcome)

    def open(self, ticket: bytes, deadline_s: float | None = None) -> Opened:
        outcome = Outcome()
        return Opened(self.agent.open(ticket, outcome, deadline_s), outcome)

    def close(self) -> None:
        self.agent.close()
        self._free()

    def _free(self) -> None:
        if self.memory.fd is not None:
            os.close(self.memory.fd)
        self.memory = KVMemory(torch.empty(0, 1, dtype=torch.uint8))


class RemoteEnd:
    """An `End` in a process of its own (`transfer_peer.py`); each method is one request and its answer."""

    def __init__(self, scheme: str, owner: int, num_blocks: int = 64, block_bytes: int = 4096) -> None:
        self.owner, self.block_bytes = owner, block_bytes
        script = Path(__file__).with_name("transfer_peer.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), scheme, str(owner), str(num_blocks), str(block_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, method: str, **arguments: Any) -> Any:
        self.tell(method, **arguments)
        return self._read()

    def tell(self, method: str, **arguments: Any) -> None:
        """A request whose answer is read by a later `_read`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"method": method, **arguments}) + "\n")
        self.process.stdin.flush()

    def expect(self, positions: list[int], block_ids: list[int], ttl_s: float = WAIT_S) -> tuple[int, bytes]:
        """A key for `result` and `fence`, and the ticket."""
        key, ticket = self.ask("expect", positions=positions, block_ids=block_ids, ttl_s=ttl_s)
        return key, b64decode(ticket)

    def open(self, ticket: bytes) -> int:
        key: int = self.ask("open", ticket=b64encode(ticket).decode())
        return key

    def push(self, key: int, positions: list[int], block_ids: list[int]) -> None:
        self.ask("push", key=key, positions=positions, block_ids=block_ids)

    def result(self, key: int) -> str:
        """ "" for a transfer that is done, else the class name of its error."""
        answer: str = self.ask("result", key=key)
        return answer

    def fence(self, key: int) -> None:
        self.ask("fence", key=key)

    def read(self, block_id: int) -> bytes:
        return b64decode(self.ask("read", block_id=block_id))

    def resources(self) -> list[int]:
        """Counts of descriptors, mappings of pools, and threads."""
        counts: list[int] = self.ask("resources")
        return counts

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.resume()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(WAIT_S)
        self.process.stdout.close()


def resources() -> list[int]:
    """Descriptors, mappings of pools, and threads that this process holds."""
    mappings = Path("/proc/self/maps").read_text().count("memfd:baton-kv")
    return [len(os.listdir("/proc/self/fd")), mappings, threading.active_count()]
