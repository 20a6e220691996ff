"""Who is in the fleet: the registry contract (`base.py`), and behind it backends found by their URI's scheme and
imported when asked for. `embedded` is served by the router itself and is the default."""

from __future__ import annotations

from importlib import import_module
from urllib.parse import urlsplit

from baton.discovery.base import Registry, RegistryAccess, RegistryAddress
from baton.errors import ConfigError

BACKENDS = {
    "embedded": "baton.discovery.embedded_client:EmbeddedRegistryClient",
    "consul": "baton.discovery.consul:ConsulRegistry",
    "consul+https": "baton.discovery.consul:ConsulRegistry",
}


def open_registry(uri: str, secret: bytes, access: RegistryAccess) -> Registry:
    """A client of the registry at `uri`; `host:port` alone is an embedded one. Raises ConfigError with the field
    `registry`, listing the choices where the scheme is none of them."""
    address = parse_address(uri)
    module, _, class_name = BACKENDS[address.scheme].partition(":")
    backend: type[Registry] = getattr(import_module(module), class_name)
    return backend.open(address, secret, access)


def parse_address(uri: str) -> RegistryAddress:
    """Raises ConfigError with the field `registry`."""
    try:
        parts = urlsplit(uri if "://" in uri else f"embedded://{uri}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"registry {uri!r}: {error}", field="registry") from error
    if parts.scheme not in BACKENDS:
        raise ConfigError(
            f"registry {uri!r}: the scheme {parts.scheme!r} is unknown (choices: {', '.join(BACKENDS)})",
            field="registry",
        )
    if not host or not port:
        raise ConfigError(f"registry {uri!r} names no host:port", field="registry")
    if parts.query or parts.fragment or parts.username or parts.password:
        raise ConfigError(f"registry {uri!r} is more than scheme://host:port/path", field="registry")
    return RegistryAddress(parts.scheme, host, port, parts.path.strip("/"))
