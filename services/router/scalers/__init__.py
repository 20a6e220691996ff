"""Who starts and stops workers at the planner's word: the contract (`base.py`), and behind it, by name or address,
nobody, the supervisor of `baton up` on this machine (`local.py`), or whatever answers a webhook (`webhook.py`)."""

from __future__ import annotations

from dataclasses import dataclass

from baton.errors import ConfigError
from baton.router.scalers.base import Scaler

NONE = "none"
UNIX = "unix:"
_WEB = ("http://", "https://")


@dataclass(frozen=True, slots=True)
class ScalerAddress:
    """address: `none`, `unix:PATH` of a supervisor's socket, or the webhook's URL. token: of the webhook, shown as
    Bearer; key: bodies are signed with it. Empty where there is none."""

    address: str = NONE
    token: str = ""
    key: str = ""


def checked_credentials(address: ScalerAddress) -> ScalerAddress:
    """Raises ConfigError for a token or a key that nobody would take."""
    if (address.token or address.key) and not address.address.startswith(_WEB):
        raise ConfigError(
            f"only a webhook takes a token or a key, and scaler is {address.address}", field="scaler"
        )
    return address


def checked_scaler(address: ScalerAddress) -> ScalerAddress:
    """Raises ConfigError for what no scaler goes by."""
    if address.address != NONE and not address.address.startswith((UNIX, *_WEB)):
        raise ConfigError(
            f"scaler {address.address!r:.200} is neither none, local (of `baton up`), unix:PATH nor an http:// or "
            "https:// URL",
            field="scaler",
        )
    if address.address.startswith(_WEB):
        import httpx

        try:
            httpx.URL(address.address)
        except httpx.InvalidURL as error:
            raise ConfigError(
                f"scaler {address.address!r:.200} is no URL: {error}", field="scaler"
            ) from error
    return checked_credentials(address)


def open_scaler(address: ScalerAddress) -> Scaler | None:
    """None where nobody starts or stops workers."""
    if checked_scaler(address).address == NONE:
        return None
    if address.address.startswith(UNIX):
        from baton.router.scalers.local import LocalScaler

        return LocalScaler(address.address.removeprefix(UNIX))
    from baton.router.scalers.webhook import WebhookScaler

    return WebhookScaler(address.address, address.token, address.key)
