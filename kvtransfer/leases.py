"""Leave to read a shared pool, taken back with a single store.

The receiver of a `shm` hand-off reads the sender's pool whenever it gets round to it, possibly long after the
sender has fenced the transfer and given the blocks to another request. So each sending session has a word in
a second memory file that the receiver maps too: the session's stamp while it may be read, 0 after. The
receiver copies the blocks of a frame first and looks at the word after; only if the stamp still
stands did every byte of the copy belong to the session (the reader's half of a sequence lock). Stamps are
never used twice, so a word's next tenant is not mistaken for the last.
"""

from __future__ import annotations

import os
import threading

import numpy as np

from baton.kvtransfer.carrier import Lease
from baton.kvtransfer.errors import TooManyTransfers
from baton.kvtransfer.memory import map_read_only, memory_file, require_sealed

MAX_LEASES = 4096
_FILE_BYTES = 8 * MAX_LEASES


class ReadLeases:
    """The sender's side."""

    def __init__(self) -> None:
        """Raises SchemeUnavailable where there is no memory file to be had."""
        self.fd, self._mapping = memory_file("baton-kv-leases", _FILE_BYTES)
        self._words = np.frombuffer(self._mapping, np.uint64)
        self._lock = threading.Lock()
        self._free = list(range(MAX_LEASES))
        self._stamp = 0

    def grant(self) -> Lease:
        """Raises TooManyTransfers where all words are in use."""
        with self._lock:
            if not self._free:
                raise TooManyTransfers(f"{MAX_LEASES} sending sessions over shm are open, the limit")
            self._stamp += 1
            lease = Lease(self._free.pop(), self._stamp)
            self._words[lease.slot] = lease.stamp
            return lease

    def revoke(self, lease: Lease) -> None:
        """A plain store: what is read after it, in any process, is refused. Revoking twice does nothing."""
        with self._lock:
            if self._words[lease.slot] == lease.stamp:
                self._words[lease.slot] = 0
                self._free.append(lease.slot)

    def close(self) -> None:
        """Once all leases are revoked."""
        del self._words
        self._mapping.close()
        os.close(self.fd)


class PeerLeases:
    """The receiver's side: a sender's words, mapped read-only."""

    def __init__(self, fd: int) -> None:
        """Raises SchemeUnavailable where `fd` is no such file; the caller keeps `fd`."""
        require_sealed(fd, _FILE_BYTES)
        self._mapping = map_read_only(fd, _FILE_BYTES)
        self._words = np.frombuffer(self._mapping, np.uint64)

    def stands(self, lease: Lease) -> bool:
        return 0 <= lease.slot < MAX_LEASES and int(self._words[lease.slot]) == lease.stamp > 0

    def close(self) -> None:
        del self._words
        self._mapping.close()
