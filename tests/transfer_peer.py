"""The process behind `transfer_ends.RemoteEnd`: requests come over a pipe as (method, arguments)."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from transfer_ends import End, Expected, Opened

CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
"""unshare(2); Python has it from 3.12 on."""


class Peer:
    def __init__(self, end: End) -> None:
        self._end = end
        self._transfers: list[Expected | Opened] = []

    def expect(self, positions: list[int], block_ids: list[int], ttl_s: float) -> tuple[int, bytes]:
        expected = self._end.expect(positions, block_ids, ttl_s)
        self._transfers.append(expected)
        return len(self._transfers) - 1, expected.ticket

    def open(self, ticket: bytes) -> int:
        self._transfers.append(self._end.open(ticket))
        return len(self._transfers) - 1

    def push(self, key: int, positions: list[int], block_ids: list[int]) -> None:
        opened = self._transfers[key]
        assert isinstance(opened, Opened)
        opened.session.push(positions, block_ids)

    def result(self, key: int) -> str:
        error = self._transfers[key].outcome.wait().error
        return "" if error is None else type(error).__name__

    def fence(self, key: int) -> None:
        transfer = self._transfers[key]
        if isinstance(transfer, Opened):
            transfer.session.fence("the test says so")
        else:
            self._end.agent.fence(transfer.transfer_id, "the test says so")

    def read(self, block_id: int) -> bytes:
        return self._end.read(block_id)

    def received(self, scheme: str) -> int:
        return self._end.agent.stats().by_scheme[scheme].blocks_received

    def open_transfers(self) -> int:
        stats = self._end.agent.stats()
        return stats.open_sends + stats.open_receives

    def error(self, key: int) -> str:
        return str(self._transfers[key].outcome.wait().error)


def leave_network() -> None:
    """Puts this process into a network of its own, as another host would be."""
    assert ctypes.CDLL(None).unshare(CLONE_NEWNET | CLONE_NEWNS) == 0, "no network of its own"
    # UCX finds its devices in /sys, which shows those of the network that mounted it.
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    os.environ["UCX_TLS"] = "tcp"  # memory could be shared still, which no other host can


def serve(connection: Connection, schemes: Sequence[str], options: dict[str, Any], is_apart: bool) -> None:
    if is_apart:
        leave_network()
        connection.send("apart")
        assert connection.recv() == "wired up"
    end = End(*schemes, **options)
    peer = Peer(end)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        method, arguments = request
        connection.send(getattr(peer, method)(*arguments))
    end.close()
