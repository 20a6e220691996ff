"""The process behind `transfer_ends.RemoteEnd`: requests as JSON lines on standard input, answers on output."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from typing import Any

from transfer_ends import End, Expected, Opened, resources


class Peer:
    def __init__(self, end: End) -> None:
        self._end = end
        self._transfers: list[Expected | Opened] = []

    def expect(self, positions: list[int], block_ids: list[int], ttl_s: float) -> tuple[int, str]:
        expected = self._end.expect(positions, block_ids, ttl_s)
        self._transfers.append(expected)
        return len(self._transfers) - 1, b64encode(expected.ticket).decode()

    def open(self, ticket: str) -> int:
        self._transfers.append(self._end.open(b64decode(ticket)))
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

    def restamp(self, owner: int) -> None:
        self._end.stamp_all(owner)

    def read(self, block_id: int) -> str:
        return b64encode(self._end.read(block_id)).decode()

    def resources(self) -> list[int]:
        return resources()


def main() -> None:
    scheme, owner, num_blocks, block_bytes = sys.argv[1], *map(int, sys.argv[2:])
    end = End(scheme, owner=owner, num_blocks=num_blocks, block_bytes=block_bytes)
    peer = Peer(end)
    _answer("ready")
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        _answer(getattr(peer, request.pop("method"))(**request))
    end.close()


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
