"""What is `ucx`'s alone: how it starts, or says why it cannot, and what its frames bear."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from transfer_ends import LAYOUT, End

from baton.kvtransfer.errors import SchemeUnavailable
from baton.kvtransfer.schemes import fastest_first
from baton.kvtransfer.ucx import PORT_DISTANCE

MakeEnd = Callable[..., End]

START_ALONE = """
import sys, torch
if {is_missing}: sys.modules["ucxx"] = None
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import KVLayout, KVMemory
from baton.kvtransfer.errors import SchemeUnavailable
layout = KVLayout(model="m", dtype="uint8", block_size=16, layers=2, kv_heads=1, head_dim=64)
memory = KVMemory(torch.zeros(2, 4096, dtype=torch.uint8))
try:
    TransferAgent(memory, layout, b"secret", ("ucx",))
except SchemeUnavailable as error:
    print(error)
agent = TransferAgent(memory, layout, b"secret", ("ucx", "tcp"))
print([endpoint.partition(":")[0] for endpoint in agent.endpoints], agent.unavailable["ucx"])
agent.close()
"""


@pytest.mark.parametrize(
    ("is_missing", "transports", "reason"),
    [(True, "tcp", "pip install 'baton[ucx]'"), (False, "none-such", "UCX has no transport to offer")],
)
def test_where_ucx_cannot_work_a_forced_choice_says_why_and_a_free_one_goes_on(
    is_missing: bool, transports: str, reason: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-c", START_ALONE.format(is_missing=is_missing)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"UCX_TLS": transports},
    )
    said = [line for line in run.stdout.splitlines() if reason in line]
    assert len(said) == 2
    assert said[1].startswith("['tcp']")


def test_the_contract_holds_over_ucx_with_tcp_alone() -> None:
    """In this process UCX shares memory; here it may not, as between hosts."""
    suite = sorted(map(str, Path(__file__).parent.glob("test_contract*.py")))
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "ucx", *suite],
        capture_output=True,
        text=True,
        env=os.environ | {"UCX_TLS": "tcp"},
    )
    assert run.returncode == 0, run.stdout
    assert re.search(r"[4-9]\d passed", run.stdout), run.stdout


def test_it_listens_beside_tcp_where_a_port_is_asked_for(make_end: MakeEnd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    end = make_end("ucx", "tcp", port=port)
    assert end.agent.endpoints == (f"ucx://127.0.0.1:{port + PORT_DISTANCE}", f"tcp://127.0.0.1:{port}")


def test_a_port_that_is_in_use_or_beyond_the_last_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] - PORT_DISTANCE
        with pytest.raises(SchemeUnavailable, match=f"ucx cannot listen .* {port + PORT_DISTANCE}: Address"):
            End("ucx", port=port)
    with pytest.raises(SchemeUnavailable, match="65535"):
        End("ucx", port=65_500)


def test_it_is_not_taken_unasked_where_there_is_no_rdma() -> None:
    has_rdma = os.path.isdir("/sys/class/infiniband") and bool(os.listdir("/sys/class/infiniband"))
    assert ("ucx" in fastest_first()) is has_rdma
    assert fastest_first()[-1] == "tcp"


def test_blocks_that_are_longer_at_the_receiver_than_a_usual_frame_arrive_whole(make_end: MakeEnd) -> None:
    usual = msgspec.structs.replace(LAYOUT, dtype="bfloat16", head_dim=32)
    long = msgspec.structs.replace(usual, block_size=4096)
    landed = []
    for scheme in ("loopback", "ucx"):
        sender = make_end(scheme, owner=1, num_blocks=512, layout=usual)
        receiver = make_end(scheme, owner=2, num_blocks=2, block_bytes=1 << 20, layout=long, is_stamped=False)
        expected = receiver.expect([0, 1], [1, 0])
        opened = sender.open(expected.ticket)
        opened.session.push(range(512), range(512))
        assert expected.outcome.wait().error is opened.outcome.wait().error is None
        landed.append([receiver.read(0), receiver.read(1)])
    assert landed[0] == landed[1] != [bytes(1 << 20)] * 2
