"""What routers tell of their workers, asked again and again: over connections that are kept, for making a client of
httpx takes a good part of what a busy machine has to give."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

import httpx


class Views(AbstractContextManager["Views"]):
    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = urls
        self._client = httpx.Client(trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._client.close()

    def workers(self) -> list[list[dict[str, Any]]]:
        """Of every router, its workers; none of one that cannot be asked."""
        return [self._workers(url) for url in self._urls]

    def _workers(self, url: str) -> list[dict[str, Any]]:
        try:
            return list(self._client.get(f"{url}/workers").raise_for_status().json()["workers"])
        except httpx.TransportError:
            return []
