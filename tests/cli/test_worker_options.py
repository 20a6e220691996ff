"""Workers' options: what `baton up` refuses itself, before it starts a worker that would."""

from __future__ import annotations

import pytest

from baton.cli.engine_options import EngineOptions
from baton.cli.options import Attention
from baton.cli.ports import free_ports
from baton.cli.worker_options import WorkerOptions
from baton.engine.attention import AUTO, BACKENDS
from baton.errors import BatonError, ConfigError


@pytest.mark.parametrize("transport", ["pigeon", "tcp,pigeon", "tcp,", "", "loopback", "auto,tcp"])
def test_transports_that_two_processes_do_not_have_are_refused_with_the_choices(transport: str) -> None:
    with pytest.raises(ConfigError, match="shm, ucx, tcp") as caught:
        WorkerOptions(transport=transport).arguments()
    assert caught.value.field == "transport"


def test_transports_keep_their_order() -> None:
    assert WorkerOptions(transport="tcp,shm").schemes == ("tcp", "shm")
    assert WorkerOptions().schemes == ()


@pytest.mark.parametrize("source", ["file:", "mail:me", "cmd:'", "url:ftp://a", "/run/notice"])
def test_what_gives_no_notice_is_refused(source: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WorkerOptions(spot_notice=source).arguments()
    assert caught.value.field == "spot_notice"


@pytest.mark.parametrize("device", ["abacus", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU"])
def test_devices_that_cannot_be_are_refused_with_the_choices(device: str) -> None:
    with pytest.raises(ConfigError, match="cpu, cuda, cuda:N"):
        EngineOptions(device=device).arguments()


def test_every_attention_backend_can_be_asked_for_by_name() -> None:
    assert [*Attention] == [AUTO, *BACKENDS]


@pytest.mark.parametrize("port", [0, 8000])
@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_this_machine_s_is_not_taken_for_a_lack_of_ports(host: str, port: int) -> None:
    with pytest.raises(BatonError, match=host) as caught:
        free_ports(host, 1, port)
    assert caught.value.field == "host"
