"""What every process of the fleet does first: checks the secret, turns on the log."""

from __future__ import annotations

import logging
from pathlib import Path

from baton import demo_model
from baton.cli.options import LogLevel
from baton.errors import ConfigError
from baton.router.policies import require_policy

DEMO_NAME = "baton-demo"
_MIN_SECRET_CHARS = 16
_WILDCARDS = ("0.0.0.0", "::")


def checked_secret(secret: str) -> bytes:
    """Raises ConfigError for a secret that protects nothing."""
    if len(secret) < _MIN_SECRET_CHARS:
        raise ConfigError(
            f"the fleet's secret has {len(secret)} characters, at least {_MIN_SECRET_CHARS} are needed: set "
            "BATON_SECRET to the same random value for every process, as from `openssl rand -hex 32`",
            field="secret",
        )
    return secret.encode()


def checked_advertise(host: str, advertise: str) -> str:
    """What others dial. Raises ConfigError where that would be an address that only means "all of mine"."""
    if not advertise and host in _WILDCARDS:
        raise ConfigError(
            f"a worker that listens on {host} has to be told its own address: give --advertise",
            field="advertise",
        )
    return advertise


def checked_policy(name: str) -> str:
    """Raises ConfigError listing the choices where there is no such policy."""
    require_policy(name)
    return name


def model_folder(given: Path | None) -> Path:
    """The folder to serve, the demo model's where none is given."""
    if given is not None and not given.is_dir():
        raise ConfigError(f"model folder {given} does not exist, or is no folder", field="model")
    return given or demo_model.PATH


def served_names(given: list[str] | None, folder: Path) -> list[str]:
    """The model's name in the API and its aliases."""
    if given:
        return given
    return [DEMO_NAME if folder == demo_model.PATH else folder.resolve().name]


def log_to_stderr(name: str, level: LogLevel) -> None:
    logging.basicConfig(
        level=level.value.upper(),
        format=f"%(asctime)s %(levelname)-7s [{name}] %(message)s",
        datefmt="%H:%M:%S",
    )
