"""Which transports there are, by URI scheme; a module is imported when its scheme is first asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from baton.kvtransfer.errors import UnknownScheme

if TYPE_CHECKING:
    from baton.kvtransfer.transport import Transport

_TRANSPORTS = {
    "loopback": "baton.kvtransfer.loopback:LoopbackTransport",
    "shm": "baton.kvtransfer.shm:ShmTransport",
    "ucx": "baton.kvtransfer.ucx:UcxTransport",
    "tcp": "baton.kvtransfer.tcp:TcpTransport",
    "gloo": "baton.kvtransfer.nccl:GlooTransport",
    "nccl": "baton.kvtransfer.nccl:NcclTransport",
    "cuda-ipc": "baton.kvtransfer.cuda_ipc:CudaIpcTransport",
}

BETWEEN_PROCESSES = tuple(scheme for scheme in _TRANSPORTS if scheme != "loopback")
"""All but the one within a process."""

SAME_HOST_SCHEMES = frozenset({"cuda-ipc", "shm"})
"""Between processes of one host and of one network namespace only."""

DEFAULT_SCHEMES = ("cuda-ipc", "shm", "nccl", "tcp")
"""Fastest first; what this memory or host does not allow is left out."""

_RDMA_DEVICES = Path("/sys/class/infiniband")


def fastest_first() -> tuple[str, ...]:
    """What to listen on where nothing is asked for. `ucx` is among it where there is RDMA, which it exists for:
    without, between two processes of one host, plain `tcp` was as fast or faster."""
    has_rdma = _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())
    return (*DEFAULT_SCHEMES[:-1], "ucx", DEFAULT_SCHEMES[-1]) if has_rdma else DEFAULT_SCHEMES


def known_schemes() -> tuple[str, ...]:
    return tuple(_TRANSPORTS)


def transport_class(scheme: str) -> type[Transport]:
    """Raises UnknownScheme listing the choices."""
    target = _TRANSPORTS.get(scheme)
    if target is None:
        raise UnknownScheme(f"no transport is called {scheme!r}; there are: {', '.join(_TRANSPORTS)}")
    module, _, name = target.partition(":")
    transport: type[Transport] = getattr(import_module(module), name)
    return transport


def scheme_of(endpoint: str) -> str:
    return endpoint.partition("://")[0]
