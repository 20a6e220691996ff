"""`tcp://`: between any two hosts, over one connection for each direction of a pair.

Plain non-blocking sockets, not a message library: on the same machine and frames they moved 1.4 to 2.6 times
as many bytes as pyzmq (1 MiB, 256 KiB and 64 KiB frames), for a payload is received straight into the buffer
that it is verified and copied from. Back-pressure is TCP's own window: a sender packs the next frame only
once the kernel took the last, so each side holds one frame, however slow the other is.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import ClassVar
from urllib.parse import urlsplit

from baton.kvtransfer.carrier import Packer, Unpacker
from baton.kvtransfer.copying import (
    FRAME_BYTES,
    CopyingPacker,
    CopyingUnpacker,
    DirectPacker,
    max_payload_bytes,
)
from baton.kvtransfer.errors import PeerLost, SchemeUnavailable
from baton.kvtransfer.messages import Proof
from baton.kvtransfer.stream_transport import StreamTransport
from baton.kvtransfer.transport import LocalWorker

KEEPALIVE_IDLE_S = 2
KEEPALIVE_INTERVAL_S = 1

MIN_DIRECT_BYTES = 16 << 10
"""Smaller blocks are gathered first: many pieces cost the kernel, and Python, more than a copy."""


class TcpTransport(StreamTransport):
    scheme: ClassVar[str] = "tcp"
    takes_fds: ClassVar[bool] = False
    usual_frame_bytes: ClassVar[int] = FRAME_BYTES

    def __init__(self, worker: LocalWorker) -> None:
        super().__init__(worker)
        self.max_payload_bytes = max_payload_bytes(worker.blocks.block_bytes, self.usual_frame_bytes)
        self._port = worker.port

    def _bind(self) -> tuple[socket.socket, str]:
        host, port = self.worker.host, self._port
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise SchemeUnavailable(f"{self.scheme} cannot use host {host!r}: {error.strerror}") from error
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except OSError as error:
            sock.close()
            reason = f"{self.scheme} cannot listen on {host} port {port}: {error.strerror}"
            raise SchemeUnavailable(reason) from error
        ip, bound_port = sock.getsockname()[:2]
        if ipaddress.ip_address(ip).is_unspecified:
            sock.close()
            raise SchemeUnavailable(
                f"{self.scheme} host {host!r} names no address that a peer could connect to"
            )
        return (
            sock,
            f"{self.scheme}://[{ip}]:{bound_port}" if ":" in ip else f"{self.scheme}://{ip}:{bound_port}",
        )

    def _dial(self, endpoint: str) -> tuple[socket.socket, tuple[str, int] | bytes]:
        try:
            parts = urlsplit(endpoint)
            ip, port = ipaddress.ip_address(parts.hostname or ""), parts.port or 0
        except ValueError as error:
            raise PeerLost(f"{endpoint!r} is no {self.scheme} endpoint: {error}") from error
        family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
        return socket.socket(family, socket.SOCK_STREAM), (str(ip), port)

    def _tune(self, sock: socket.socket) -> None:
        stall_ms = int(self.worker.stall_timeout_s * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)

    def _packer(self) -> Packer:
        blocks = self.worker.blocks
        is_direct = blocks.is_on_host and blocks.block_bytes >= MIN_DIRECT_BYTES
        packer = DirectPacker if is_direct else CopyingPacker
        return packer(blocks, self.worker.checksum, self.usual_frame_bytes)

    def _unpacker(self, proof: Proof, fds: Sequence[int]) -> Unpacker:
        return CopyingUnpacker()

    def _offered_fds(self) -> Sequence[int]:
        return ()
