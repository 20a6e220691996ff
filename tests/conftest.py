"""Fixtures that every test may ask for."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consul_agent import ConsulAgent

from baton.loaded import load_uncollected, spare_what_is_loaded

if not Path("/dev/nvidia0").exists():
    # Triton's kernels run on the CPU then. It has to know before anybody imports it, as transformers does.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant of `model_folders.VARIANTS`, built once a session; not to be changed."""
    import model_folders  # brings in torch and transformers, which most tests do without

    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else model_folders.make_folder(name, path)

    return folder


@pytest.fixture(scope="session")
def consul_agent() -> Iterator[ConsulAgent]:
    """One that all tests share; each takes a prefix of its own."""
    with ConsulAgent() as agent:
        yield agent


def pytest_configure() -> None:
    load_uncollected()  # the tests bring in torch and transformers


def pytest_collection_finish() -> None:
    spare_what_is_loaded()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries complain of what is not collected in the end


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--campaign-seed", type=int, help="replay this one schedule of a campaign")
    parser.addoption("--kills", type=int, default=300, help="of the kill campaign's long form")
    parser.addoption("--outages", type=int, default=60, help="of the partition campaign")
    parser.addoption("--soak-minutes", type=float, default=60.0, help="how long the memory soak churns")
