"""Which transports there are, by URI scheme; a module is imported when its scheme is first asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from baton.kvtransfer.errors import UnknownScheme
from baton.kvtransfer.transport import Transport

_TRANSPORTS = {
    "loopback": "baton.kvtransfer.loopback:LoopbackTransport",
    "shm": "baton.kvtransfer.shm:ShmTransport",
    "ucx": "baton.kvtransfer.ucx:UcxTransport",
    "tcp": "baton.kvtransfer.tcp:TcpTransport",
}


_RDMA_DEVICES = Path("/sys/class/infiniband")


def fastest_first() -> tuple[str, ...]:
    """What to listen on where nothing is asked for. `ucx` is among it where there is RDMA, which it exists for:
    without, between two processes of one host, plain `tcp` was as fast or faster."""
    has_rdma = _RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())
    return ("shm", "ucx", "tcp") if has_rdma else ("shm", "tcp")


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
