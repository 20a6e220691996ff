"""Names of devices; apart, so that who only checks options does not wait for torch."""

from __future__ import annotations

import re

from baton.errors import ConfigError

_NAME = re.compile(r"cpu|cuda(:\d+)?", re.ASCII)


def require_device_name(device: str) -> None:
    """Raises ConfigError listing the choices; whether there is such a device is another question."""
    if not _NAME.fullmatch(device):
        raise ConfigError(f"device {device!r} is unknown (choices: cpu, cuda, cuda:N)", field="device")
