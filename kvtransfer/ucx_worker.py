"""A worker of UCX on the agent's I/O thread: one for each link, so that all it holds goes with the link."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.kvtransfer import ucp
from baton.kvtransfer.errors import PeerLost, SchemeUnavailable
from baton.kvtransfer.io_thread import IOThread

PASSES_PER_TURN = 16
"""How often progress is made before others on the I/O thread get their turn."""


class UcxWorker:
    """Sleeps until UCX has something to do: its event descriptor is one more that the I/O thread waits for."""

    def __init__(self, context: Any, io: IOThread, on_progress: Callable[[], None]) -> None:
        """on_progress: called on the I/O thread whenever something may have come to its end. Raises
        SchemeUnavailable where UCX lacks descriptors or memory."""
        self._ucxx = ucp.ucxx_module()
        self._io = io
        self._on_progress = on_progress
        self._endpoint: Any = None
        try:
            self._worker = self._ucxx.UCXWorker(context)
            self._worker.init_blocking_progress_mode()
        except self._ucxx.UCXError as error:
            raise SchemeUnavailable(f"UCX cannot serve one more link: {error}") from error
        self._fd: int = self._worker.epoll_file_descriptor
        self.address: bytes = self._worker.address.tobytes()
        io.loop.add_reader(self._fd, self.attend)

    def connect(self, address: bytes) -> Any:
        """The worker's one endpoint, to the worker at `address`. Raises PeerLost."""
        try:
            peer = self._ucxx.UCXAddress.create_from_buffer(address)
            self._endpoint = self._ucxx.UCXEndpoint.create_from_worker_address(self._worker, peer, True)
        except self._ucxx.UCXError as error:
            raise PeerLost(f"UCX finds no way to the peer: {error}") from error
        return self._endpoint

    def progress(self) -> None:
        self._worker.progress()

    def attend(self) -> None:
        """Does what there is to do, and has the event descriptor wake the I/O thread for what comes after."""
        if self._worker is None:
            return
        for _ in range(PASSES_PER_TURN):
            self._worker.progress()
            if self._worker.arm():
                break
        else:
            self._io.post(self.attend)
        self._on_progress()

    def disconnect(self) -> None:
        """Waits for nobody: the endpoint is closed by force, and what is under way ends with it."""
        if self._endpoint is not None:
            self._endpoint.close_blocking()
            self._worker.progress()
            self._endpoint = None

    def close(self) -> None:
        """Once nothing more is to be done on it."""
        self.disconnect()
        self._io.loop.remove_reader(self._fd)
        self._worker = None
        del self._on_progress  # refers to the end that refers to this worker
