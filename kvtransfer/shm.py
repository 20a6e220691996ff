"""`shm://`: between two processes of one host, through the sender's own pool.

    sender's pool (memfd) --- mapped read-only by the receiver, copied once ---> receiver's pool

The socket carries only words: an AF_UNIX stream with an abstract name (unix(7)), so that nothing is left in
any file system whatever dies, and only processes of the same network namespace reach it, which is the test
for "same host". The pool's descriptor crosses it once, at the connection's start. A process that dies closes
its sockets: the other side hears at once.

Between pools that lie differently (`plan`) the sender has to touch every byte anyway: the converted rows
travel within the frames, as they do over `tcp`.

The sender's fence is one store to the session's read lease (`leases`); the receiver's is the slot's lock in
its own inbox. Neither waits for the peer.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from typing import ClassVar

from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.copying import max_payload_bytes
from baton.kvtransfer.errors import MalformedFrame, PeerLost, SchemeUnavailable
from baton.kvtransfer.leases import ReadLeases
from baton.kvtransfer.mapping import MappingPacker, MappingUnpacker
from baton.kvtransfer.memory import require_sealed
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.stream_transport import StreamTransport
from baton.kvtransfer.transport import LocalWorker


class SameHostTransport(StreamTransport):
    """Lends the pool under read leases; how the peer reaches it is the scheme's affair."""

    takes_fds: ClassVar[bool] = True

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self._leases: ReadLeases | None = None

    def listen(self) -> str:
        self._leases = ReadLeases()
        return super().listen()

    @property
    def leases(self) -> ReadLeases:
        assert self._leases is not None, "a link before `listen`"
        return self._leases

    def _bind(self) -> tuple[socket.socket, str]:
        name = f"baton-kv-{secrets.token_hex(8)}"
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(_address(name))
        return sock, f"{self.scheme}://{name}"

    def _dial(self, endpoint: str) -> tuple[socket.socket, tuple[str, int] | bytes]:
        name = endpoint.removeprefix(f"{self.scheme}://")
        if name == endpoint or not name.isascii() or not 0 < len(name) < 100:
            raise PeerLost(f"{endpoint!r} is no {self.scheme} endpoint")
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), _address(name)

    def _tune(self, sock: socket.socket) -> None:
        """The kernel's defaults do: frames are a few KiB."""

    def _packer(self) -> Packer:
        return MappingPacker(self.worker.blocks, self.worker.checksum, self.leases)

    def close(self) -> None:
        super().close()
        if self._leases is not None:
            self._leases.close()
            self._leases = None


class ShmTransport(SameHostTransport):
    scheme: ClassVar[str] = "shm"

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self.max_payload_bytes = max_payload_bytes(worker.blocks.block_bytes)
        fd = worker.pool_fd
        if fd is None:
            raise SchemeUnavailable("the pool has no memory file that another process could map")
        require_sealed(fd, len(worker.blocks) * worker.blocks.block_bytes)
        self._pool_fd = fd

    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        if len(fds) != 2:
            raise MalformedFrame(f"{len(fds)} descriptors came with the proof, not 2")
        pool_fd, leases_fd = fds
        return MappingUnpacker(self.worker.blocks, proof, pool_fd, leases_fd)

    def _offered_fds(self) -> Sequence[int]:
        return self._pool_fd, self.leases.fd


def _address(name: str) -> bytes:
    return b"\0" + name.encode("ascii")
