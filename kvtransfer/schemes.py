"""Which transports there are, by URI scheme; a module is imported when its scheme is first asked for."""

from __future__ import annotations

from importlib import import_module

from baton.kvtransfer.errors import UnknownScheme
from baton.kvtransfer.transport import Transport

_TRANSPORTS = {
    "loopback": "baton.kvtransfer.loopback:LoopbackTransport",
    "shm": "baton.kvtransfer.shm:ShmTransport",
    "tcp": "baton.kvtransfer.tcp:TcpTransport",
    "gloo": "baton.kvtransfer.nccl:GlooTransport",
    "nccl": "baton.kvtransfer.nccl:NcclTransport",
    "cuda-ipc": "baton.kvtransfer.cuda_ipc:CudaIpcTransport",
}


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
