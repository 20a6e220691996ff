"""A worker says which KV transports it cannot offer, and why."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest
from stepped_pair import SECRET

from baton.engine.engine import Engine
from baton.engine.parallel import Shard
from baton.errors import ConfigError
from baton.worker.transfer import make_agent


def test_a_transport_that_is_not_offered_is_logged_once_with_its_reason(
    engine_of: Callable[[str, int], Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_of("prefill", 64)
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.INFO):
        port = taken.getsockname()[1]
        agent = make_agent(engine.model, engine.pool, Shard(), SECRET, ("shm", "tcp"), "127.0.0.1", port)
        agent.close()
        assert agent.schemes == ("shm",)
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith("KV transport tcp is not offered: ")
        assert str(port) in line
        with pytest.raises(ConfigError, match=str(port)):
            make_agent(engine.model, engine.pool, Shard(), SECRET, ("tcp",), "127.0.0.1", port)
