"""The process behind `transfer_ends.RemoteEnd`: requests come over a pipe as (method, arguments)."""

from __future__ import annotations

from multiprocessing.connection import Connection

from transfer_ends import End, Expected, Opened


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


def serve(
    connection: Connection, scheme: str, owner: int, num_blocks: int, block_bytes: int, device: str
) -> None:
    end = End(scheme, owner=owner, num_blocks=num_blocks, block_bytes=block_bytes, device=device)
    peer = Peer(end)
    connection.send("ready")
    while (request := connection.recv()) is not None:
        method, arguments = request
        connection.send(getattr(peer, method)(*arguments))
    end.close()
