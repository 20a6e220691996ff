"""Notices that this machine is to be taken away, as clouds give them for spot instances: asked for again and again,
each time with a deadline, at a place that the user names."""

from __future__ import annotations

import asyncio
import enum
import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from baton.errors import ConfigError

POLL_S = 2.0
_ANSWER_TIMEOUT_S = 2.0

_log = logging.getLogger(__name__)


class NoticeKind(enum.Enum):
    FILE = "file"
    URL = "url"
    COMMAND = "cmd"


@dataclass(frozen=True, slots=True)
class NoticeSource:
    """Gives notice by: a file that exists, a URL that answers 200, a command (no shell) that ends with status 0."""

    kind: NoticeKind
    target: str

    @classmethod
    def parse(cls, text: str) -> NoticeSource:
        """`file:PATH`, `url:URL` or `cmd:COMMAND`. Raises ConfigError naming the choices."""
        kind, _, target = text.partition(":")
        choices = {choice.value: choice for choice in NoticeKind}
        if kind not in choices or not target:
            raise ConfigError(
                f"spot_notice {text!r} is none of file:PATH, url:URL, cmd:COMMAND", field="spot_notice"
            )
        source = cls(choices[kind], target)
        source.require_sound()
        return source

    def require_sound(self) -> None:
        """Raises ConfigError for a target that could never be asked."""
        try:
            if self.kind is NoticeKind.COMMAND and not shlex.split(self.target):
                raise ConfigError("spot_notice names no command", field="spot_notice")
            if self.kind is NoticeKind.URL and httpx.URL(self.target).scheme not in ("http", "https"):
                raise ConfigError(f"spot_notice {self.target!r} is no http URL", field="spot_notice")
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigError(f"spot_notice {self.target!r}: {error}", field="spot_notice") from error


async def wait_for_notice(
    source: NoticeSource, on_notice: Callable[[], None], poll_s: float = POLL_S
) -> None:
    """Calls `on_notice` once, then waits to be cancelled. Who cannot be asked is named in the log, once."""
    complaint = ""
    while True:
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                is_given = await _ask(source)
        except (TimeoutError, OSError, httpx.HTTPError) as error:
            is_given = False
            if complaint != (complaint := f"{type(error).__name__}: {error}"):
                _log.warning("spot notices cannot be asked for at %s: %s", source.target, complaint)
        if is_given:
            _log.warning("%s gives notice that this machine goes away: draining", source.target)
            on_notice()
            await asyncio.Event().wait()
        await asyncio.sleep(poll_s)


async def _ask(source: NoticeSource) -> bool:
    match source.kind:
        case NoticeKind.FILE:
            return await asyncio.to_thread(Path(source.target).exists)
        case NoticeKind.URL:
            async with httpx.AsyncClient(trust_env=False, timeout=_ANSWER_TIMEOUT_S) as client:
                return (await client.get(source.target)).status_code == httpx.codes.OK
        case NoticeKind.COMMAND:
            return await _status_of(shlex.split(source.target)) == 0


async def _status_of(command: list[str]) -> int:
    """Of a process that is killed where this is cancelled."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
