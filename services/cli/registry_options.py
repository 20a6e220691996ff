"""How a process shows itself to a Consul."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from baton.cli.option_groups import OptionGroup
from baton.cli.options import option
from baton.discovery.base import RegistryAccess


@dataclass(frozen=True, slots=True)
class RegistryOptions(OptionGroup):
    registry_token: Annotated[
        str,
        option(
            help="Consul's ACL token, with service:write for the prefix. Best given as BATON_REGISTRY_TOKEN.",
            envvar="BATON_REGISTRY_TOKEN",
            show_default=False,
        ),
    ] = ""
    registry_ca: Annotated[
        Path | None,
        option(
            help="PEM file that a consul+https:// certificate is checked against. Default: the system's.",
            envvar="BATON_REGISTRY_CA",
        ),
    ] = None
    registry_certificate: Annotated[
        Path | None,
        option(help="PEM file shown to a Consul that asks for one.", envvar="BATON_REGISTRY_CERTIFICATE"),
    ] = None
    registry_key: Annotated[
        Path | None, option(help="PEM file with its private key.", envvar="BATON_REGISTRY_KEY")
    ] = None

    def access(self) -> RegistryAccess:
        return RegistryAccess(
            self.registry_token, self.registry_ca, self.registry_certificate, self.registry_key
        )
