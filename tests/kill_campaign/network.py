"""Hosts of a test, each in a network of its own (a network namespace), all on one switch (a bridge), by cables that
can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest

_SUBNET = "198.18.79"  # RFC 2544: set aside for tests of networks


@contextmanager
def networked(*hosts: str) -> Iterator[Network]:
    """hosts: names that do for a network namespace. Skips the test where namespaces cannot be made."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("making network namespaces needs root and iproute2")
    with ExitStack() as cleanup:
        yield Network(hosts, cleanup)


class Network:
    def __init__(self, hosts: Sequence[str], cleanup: ExitStack) -> None:
        """cleanup: undoes what is made here."""
        self._hosts = tuple(hosts)
        self._cleanup = cleanup
        self._make_switch()
        for number, host in enumerate(self._hosts):
            self._connect(host, self._port(number))

    def address(self, host: str) -> str:
        return f"{_SUBNET}.{2 + self._hosts.index(host)}"

    def namespace(self, host: str) -> str:
        """A name that no other run of the tests has."""
        return f"b{os.getpid() % 100_000}{host}"

    def cut(self, host: str) -> None:
        """At the host's own end: whatever it sends or is sent is lost without a word."""
        _ip("-n", self.namespace(host), "link", "set", "port", "down")

    def heal(self, host: str) -> None:
        _ip("-n", self.namespace(host), "link", "set", "port", "up")

    def _make_switch(self) -> None:
        switch = self.namespace("switch")
        _ip("link", "add", switch, "type", "bridge")
        self._cleanup.callback(_ip, "link", "del", switch)
        _ip("addr", "add", f"{_SUBNET}.1/24", "dev", switch)
        _ip("link", "set", switch, "up")

    def _connect(self, host: str, port: str) -> None:
        namespace = self.namespace(host)
        _ip("netns", "add", namespace)
        self._cleanup.callback(_ip, "netns", "del", namespace)
        _ip("link", "add", port, "type", "veth", "peer", "name", "port", "netns", namespace)
        # At once; with its namespace it would go some time later.
        self._cleanup.callback(_ip, "link", "del", port)
        _ip("link", "set", port, "master", self.namespace("switch"), "up")
        _ip("-n", namespace, "addr", "add", f"{self.address(host)}/24", "dev", "port")
        for device in ("port", "lo"):
            _ip("-n", namespace, "link", "set", device, "up")

    def _port(self, number: int) -> str:
        """By number, for an interface's name has at most 15 letters."""
        return self.namespace(f"port{number}")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
