"""Commands that ask a running router, where what they ask is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from baton.cli.main import app
from baton.errors import Unavailable


class Page(BaseHTTPRequestHandler):
    """Some other server's answer to anything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>It works!</html>")

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", [["plan"], ["flip", "prefill-0", "decode"]], ids=" ".join)
def test_what_is_no_router_is_named(url: str, command: list[str]) -> None:
    with pytest.raises(Unavailable, match=f"{url}: /.* answers 200, but not as a router does"):
        CliRunner().invoke(app, [*command, "--url", url], catch_exceptions=False)


@pytest.mark.parametrize("command", [["plan"], ["flip", "prefill-0", "decode"], ["chat"]], ids=" ".join)
def test_a_port_where_nobody_listens_is_no_router_s(command: list[str]) -> None:
    with pytest.raises(Unavailable, match=r"no router answers at http://127\.0\.0\.1:1"):
        CliRunner().invoke(app, [*command, "--url", "http://127.0.0.1:1"], catch_exceptions=False)


@pytest.mark.parametrize("command", [["plan"], ["flip", "prefill-0", "decode"]], ids=" ".join)
def test_an_address_that_is_none_is_named(command: list[str]) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        CliRunner().invoke(app, [*command, "--url", "nowhere"], catch_exceptions=False)
