"""The one thread of a link that may wait for its process group, so that the I/O thread never does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.pair_group import PairGroup

Job = Callable[[], None]


class Courier:
    """Runs what is posted, in order, until it is stopped or a job fails; dissolves the group then."""

    def __init__(self, group: PairGroup, on_failed: Callable[[TransferError], None]) -> None:
        """on_failed: called on the courier's thread, at most once."""
        self._group = group
        self._on_failed = on_failed
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="baton-kv-courier", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def post(self, job: Job) -> None:
        """From any thread; whoever posts keeps the number of jobs bounded."""
        self._jobs.put(job)

    def stop(self) -> None:
        """From any thread: no further job begins, and the one that waits for the peer fails."""
        self._is_stopped = True
        self._jobs.put(None)
        self._group.break_off()

    def join(self, timeout_s: float) -> None:
        """After `stop`."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None and not self._is_stopped:
                job()
        except TransferError as error:
            self._on_failed(error)
        finally:
            self._group.dissolve()
            del self._on_failed  # refers to the end that refers to this courier
