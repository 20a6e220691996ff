"""Notices that a machine goes away: from a file, a URL, a command; wrong or missing answers change nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from mini_fleet import until

from baton.errors import ConfigError
from baton.worker.notices import NoticeSource, wait_for_notice

POLL_S = 0.02


async def is_given_once(source: str, give: Path | None = None) -> list[str]:
    """What was told after `give` came into being."""
    told: list[str] = []
    waiting = asyncio.create_task(
        wait_for_notice(NoticeSource.parse(source), lambda: told.append("notice"), POLL_S)
    )
    if give is not None:
        await asyncio.sleep(5 * POLL_S)
        assert not told, "nobody has given notice yet"
        await asyncio.to_thread(give.touch)
    await until(lambda: bool(told))
    await asyncio.sleep(5 * POLL_S)
    waiting.cancel()
    return told


async def test_a_file_that_appears_is_a_notice(tmp_path: Path) -> None:
    assert await is_given_once(f"file:{tmp_path / 'notice'}", give=tmp_path / "notice") == ["notice"]


async def test_a_command_that_succeeds_is_a_notice_and_its_arguments_are_quoted_as_in_a_shell(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a notice"
    assert await is_given_once(f"cmd:test -e '{path}'", give=path) == ["notice"]


@pytest.mark.parametrize("status", [200, 404])
async def test_a_url_gives_notice_by_answering_200(status: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status} Whatever\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        asked.set()
        writer.close()

    asked, told = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    source = NoticeSource.parse(f"url:http://127.0.0.1:{port}/notice")
    waiting = asyncio.create_task(wait_for_notice(source, told.set, POLL_S))
    async with asyncio.timeout(10):
        await asked.wait()
        if status == 200:
            await told.wait()
    assert told.is_set() is (status == 200)
    waiting.cancel()
    server.close()


@pytest.mark.parametrize("source", ["url:http://127.0.0.1:1/", "cmd:/no/such/command", "file:/no/such/file"])
async def test_who_cannot_be_asked_has_given_no_notice(source: str) -> None:
    told: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10 * POLL_S):
            await wait_for_notice(NoticeSource.parse(source), lambda: told.append("notice"), POLL_S)
    assert not told


@pytest.mark.parametrize(
    "text", ["", "file", "file:", "pigeon:home", "cmd: ", "cmd:'open", "url:ftp://host/"]
)
def test_a_source_that_could_never_be_asked_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        NoticeSource.parse(text)
    assert error.value.field == "spot_notice"
