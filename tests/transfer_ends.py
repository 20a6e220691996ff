"""One end of a hand-off, in this process or in another, whose blocks say whose they are."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
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

_processes = multiprocessing.get_context("forkserver")
# Only what costs time: the fork server's path is not ours, so it must not look for packages of this project.
_processes.set_forkserver_preload(["torch", "msgspec"])


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
        device: str = "cpu",
        is_stamped: bool = True,
        secret: bytes = SECRET,
        layout: KVLayout = LAYOUT,
        **options: Any,
    ) -> None:
        self.owner = owner
        if device != "cpu":
            self.memory = KVMemory(torch.zeros(num_blocks, block_bytes, dtype=torch.uint8, device=device))
        elif shareable:
            self.memory = shareable_memory(num_blocks, block_bytes)
        else:
            self.memory = KVMemory(torch.zeros(num_blocks, block_bytes, dtype=torch.uint8))
        if is_stamped:
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
        return self.memory.blocks[block_id].cpu().numpy().tobytes()

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
    """An `End` in a process of its own; each method is one request to `transfer_peer.Peer` and its answer."""

    def __init__(
        self,
        *schemes: str,
        owner: int,
        num_blocks: int = 64,
        block_bytes: int = 4096,
        wire_up: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        """wire_up: for a process with a network of its own, gets the process id and connects that network."""
        self._connection, far = _processes.Pipe()
        shape = {"owner": owner, "num_blocks": num_blocks, "block_bytes": block_bytes}
        arguments = (far, schemes, shape | options, wire_up is not None)
        self._process = _processes.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        far.close()
        if wire_up is not None:
            assert self.answer() == "apart"
            assert self._process.pid is not None
            wire_up(self._process.pid)
            self._connection.send("wired up")
        assert self.answer() == "ready"

    def answer(self) -> Any:
        assert self._connection.poll(WAIT_S), "the other process does not answer"
        return self._connection.recv()

    def tell(self, method: str, *arguments: Any) -> None:
        """A request whose answer is read by a later `answer`."""
        self._connection.send((method, arguments))

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.tell(method, *arguments)
        return self.answer()

    def expect(self, positions: list[int], block_ids: list[int], ttl_s: float = WAIT_S) -> tuple[int, bytes]:
        """A key for `result` and `fence`, and the ticket."""
        key, ticket = self._ask("expect", positions, block_ids, ttl_s)
        return key, ticket

    def open(self, ticket: bytes) -> int:
        key: int = self._ask("open", ticket)
        return key

    def push(self, key: int, positions: list[int], block_ids: list[int]) -> None:
        self._ask("push", key, positions, block_ids)

    def result(self, key: int) -> str:
        """Empty for a transfer that is done, else the class name of its error."""
        answer: str = self._ask("result", key)
        return answer

    def fence(self, key: int) -> None:
        self._ask("fence", key)

    def read(self, block_id: int) -> bytes:
        content: bytes = self._ask("read", block_id)
        return content

    def received(self, scheme: str) -> int:
        """Blocks that came by `scheme`."""
        blocks: int = self._ask("received", scheme)
        return blocks

    def open_transfers(self) -> int:
        """Of both directions."""
        count: int = self._ask("open_transfers")
        return count

    def error(self, key: int) -> str:
        """The message of what ended the transfer."""
        message: str = self._ask("error", key)
        return message

    def pause(self) -> None:
        """Returns once every thread of the process stands still."""
        self._signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(task.joinpath("stat").read_text().rpartition(")")[2][1] != "T" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join(WAIT_S)

    def close(self) -> None:
        if self._process.is_alive():
            self.resume()
            self._connection.send(None)
            self._process.join(WAIT_S)
        self._process.close()
        self._connection.close()


def _serve(*arguments: Any) -> None:
    from transfer_peer import serve  # which needs this module

    serve(*arguments)


def start_process_server() -> None:
    """Starts the helper that all `RemoteEnd`s are forked from, torch loaded; it stays to the end of the run."""
    process = _processes.Process(target=os.getpid)
    process.start()
    process.join(WAIT_S)
    process.close()


def resources() -> list[int]:
    """Descriptors, mappings of pools, and threads that this process holds."""
    mappings = Path("/proc/self/maps").read_text().count("memfd:baton-kv")
    return [len(os.listdir("/proc/self/fd")), mappings, threading.active_count()]
