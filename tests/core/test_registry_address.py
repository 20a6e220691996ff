"""Where a registry is, as users say it."""

from __future__ import annotations

import pytest
from announced_worker import SECRET

from baton.discovery import open_registry
from baton.discovery.base import RegistryAccess
from baton.errors import ConfigError


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("etcd://10.0.0.1:2379", "choices: embedded, consul"),
        ("consul://10.0.0.1", "host:port"),
        ("10.0.0.1", "host:port"),
        ("consul://10.0.0.1:port", "port"),
        ("consul://10.0.0.1:8500/a/b", "a/b"),
        ("consul://token@10.0.0.1:8500", "more than"),
        ("10.0.0.1:8100/fleet", "fleet"),
    ],
)
def test_an_address_that_cannot_be_is_refused_with_the_reason(uri: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        open_registry(uri, SECRET, RegistryAccess())
    assert error.value.field == "registry"


def test_a_token_for_a_registry_without_users_is_refused() -> None:
    with pytest.raises(ConfigError, match="no token"):
        open_registry("10.0.0.1:8100", SECRET, RegistryAccess(token="t"))
