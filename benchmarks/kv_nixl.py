"""NIXL's side of `kvtransfer.py`: pools registered and descriptors prepared once, one post a hand-off.

Runs in `.venv-peers/nixl`. The backend is UCX; `UCX_TLS` in the environment chooses its transports. Both sides
poll, without NIXL's progress threads: on two cores that was several times faster than with them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import kv_pair
import numpy as np
from kv_pair import Blocks, Case, Ids
from nixl_cu12._api import nixl_agent, nixl_agent_config

DONE_WORD = b"landed"


def descriptors(blocks: Blocks) -> Any:
    """[pool_blocks, 3]: address, bytes and device of each block."""
    count, block_bytes = blocks.shape
    rows = np.zeros((count, 3), np.uint64)
    rows[:, 0] = blocks.ctypes.data + np.arange(count, dtype=np.uint64) * np.uint64(block_bytes)
    rows[:, 1] = block_bytes
    return rows


class End:
    def __init__(self, name: str, case: Case) -> None:
        self.blocks = kv_pair.fresh_blocks(case)
        self.agent = nixl_agent(name, nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        region = [(self.blocks.ctypes.data, self.blocks.nbytes, 0, "pool")]
        self.registered = self.agent.register_memory(region, "DRAM")

    def close(self) -> None:
        self.agent.deregister_memory(self.registered)
        del self.agent


class NixlReceiver(End, kv_pair.Receiver):
    def __init__(self, case: Case, arguments: list[str]) -> None:
        super().__init__("receiver", case)

    def hello(self) -> Any:
        return self.agent.get_agent_metadata(), descriptors(self.blocks)

    def greet(self, sender: Any) -> None:
        self.agent.add_remote_agent(sender)

    def offer(self, block_ids: Ids) -> Any:
        return block_ids

    def settle(self) -> None:
        while not self.agent.check_remote_xfer_done("sender", DONE_WORD):
            pass


class NixlSender(End, kv_pair.Sender):
    def __init__(self, case: Case, arguments: list[str], hello: Any) -> None:
        super().__init__("sender", case)
        metadata, remote = hello
        name = self.agent.add_remote_agent(metadata)
        self.local_blocks = self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", descriptors(self.blocks), "DRAM")
        self.remote_blocks = self.agent.prep_xfer_dlist(name, remote, "DRAM")

    def hello(self) -> Any:
        return self.agent.get_agent_metadata()

    def send(self, offer: Ids, block_ids: Ids) -> tuple[float, Callable[[], None]]:
        agent = self.agent
        handle = agent.make_prepped_xfer(
            "WRITE", self.local_blocks, block_ids, self.remote_blocks, offer, DONE_WORD
        )
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        acknowledged_s = time.monotonic()
        if state != "DONE":
            raise RuntimeError(f"the transfer ended as {state}")
        return acknowledged_s, handle.release

    def close(self) -> None:
        self.local_blocks.release()
        self.remote_blocks.release()
        super().close()


if __name__ == "__main__":
    kv_pair.main(NixlReceiver, NixlSender)
