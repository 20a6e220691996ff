"""Ports for processes that are not started yet."""

from __future__ import annotations

import errno
import random
import socket

from baton.errors import Unavailable

_UNPRIVILEGED_PORTS = range(10_000, 32_768)  # below what Linux takes for outgoing connections
_LAST_PORT = 65_535
_PORT_ATTEMPTS = 100
_OTHER_PORTS_MAY_DO = (errno.EADDRINUSE, errno.EACCES)


def free_ports(host: str, count: int, first: int = 0) -> list[int]:
    """`count` ports from `first` on, or with 0 any that are free, all different. Raises Unavailable where one is
    taken, before anything starts.

    Not ephemeral ports that the system would choose: until somebody listens there, some outgoing connection could
    get the same one.
    """
    if first:
        wanted = range(first, first + count)
        if wanted[-1] > _LAST_PORT:
            raise Unavailable(
                f"{count} ports from {first} on end above {_LAST_PORT}, the limit", field="port"
            )
        for port in wanted:
            _probe(host, port)
        return list(wanted)
    found: list[int] = []
    for port in random.sample(_UNPRIVILEGED_PORTS, count * _PORT_ATTEMPTS):
        try:
            _probe(host, port)
        except Unavailable as error:
            if error.field != "port":
                raise
        else:
            found.append(port)
        if len(found) == count:
            return found
    raise Unavailable(
        f"of {count * _PORT_ATTEMPTS} ports tried on {host}, {len(found)} are free", field="port"
    )


def _probe(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            at_fault = "port" if error.errno in _OTHER_PORTS_MAY_DO else "host"
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}", field=at_fault) from error
