"""Where routers of `baton up` order workers: a Unix socket in a folder of its own, which only this user may enter.

One connection an order: a line of JSON as `baton.router.scalers.base.ScaleOrder.body` has it, and a line
`{"error": ""}` back, or what is wrong.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from baton.errors import BatonError, InvalidRequest

_LINE_TIMEOUT_S = 1.0
"""The caller has its line ready when it connects; nobody else is served meanwhile."""
_MAX_LINE_BYTES = 65_536
_MAX_WORKERS = 1024
_ROLES = ("prefill", "decode")


class ScaleDesk:
    """start: as many workers in all, those that are missing in this role. stop: one by its id, which raises
    InvalidRequest where there is none."""

    def __init__(self, start: Callable[[str, int], None], stop: Callable[[str], None]) -> None:
        self._start = start
        self._stop = stop
        self._folder = tempfile.TemporaryDirectory(prefix="baton-")
        self.path = Path(self._folder.name) / "scale"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self.fd = self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        self._folder.cleanup()

    def answer(self) -> None:
        """Takes one order; to be called when `fd` is readable."""
        connection, _ = self._socket.accept()
        with connection:
            try:
                _require_own_user(connection)
                self._obey(_line(connection))
                error = ""
            except (BatonError, OSError) as refusal:
                error = str(refusal)
            self._reply(connection, error)

    def _reply(self, connection: socket.socket, error: str) -> None:
        try:
            connection.sendall(json.dumps({"error": error}).encode() + b"\n")
        except OSError:  # who has gone asks again, and orders are as good twice
            return

    def _obey(self, line: bytes) -> None:
        match _order(line):
            case {"action": "start", "role": str(role), "workers": int(workers)}:
                if role not in _ROLES:
                    raise InvalidRequest(f"role {role!r:.40} is none of {', '.join(_ROLES)}", field="role")
                if not 1 <= workers <= _MAX_WORKERS:
                    raise InvalidRequest(
                        f"workers is {workers}, not within 1 to {_MAX_WORKERS}", field="workers"
                    )
                self._start(role, workers)
            case {"action": "stop", "worker": str(worker)}:
                self._stop(worker)
            case _:
                raise InvalidRequest(
                    "neither an order to start workers nor one to stop a worker", field="action"
                )


def _order(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"an order is a line of JSON: {error}") from error


def _line(connection: socket.socket) -> bytes:
    """Within one deadline: whoever writes slowly holds up the supervisor."""
    deadline_s = time.monotonic() + _LINE_TIMEOUT_S
    line = b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.001, deadline_s - time.monotonic()))
        received = connection.recv(_MAX_LINE_BYTES)
        line += received
        if not received or len(line) > _MAX_LINE_BYTES:
            raise InvalidRequest(f"an order is one line of at most {_MAX_LINE_BYTES} bytes")
    return line


def _require_own_user(connection: socket.socket) -> None:
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    if uid != os.geteuid():
        raise InvalidRequest(f"orders are taken from user {os.geteuid()} alone, not from {uid}")
