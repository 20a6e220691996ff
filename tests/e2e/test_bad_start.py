"""What is wrong with a model folder, an option or a port stops a process before it serves, with one clear line."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cluster import start_baton
from safetensors.torch import load_file, save_file

SECRET = {"BATON_SECRET": "a secret for tests only"}
CONFIGURATION_ERROR = 2


@pytest.fixture(scope="module")
def registry() -> Iterator[socket.socket]:
    """Where a worker would register; nobody may ever connect."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def run_baton(
    command: str, environment: Mapping[str, str] | None = None, **options: object
) -> tuple[int, str]:
    """Exit status and stderr of a process that ends by itself."""
    process = start_baton(command, options, environment, stderr=subprocess.PIPE)
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stderr


def without_shard(folder: Path) -> list[str]:
    shard = sorted(folder.glob("model-00002-*.safetensors"))[0]
    shard.unlink()
    return [shard.name]


def with_wrong_shape(folder: Path) -> list[str]:
    shard, name = _shard_of(folder, "model.norm.weight")
    save_file(load_file(shard) | {name: torch.ones(63)}, shard)
    return [shard.name, name, "63", "64"]


def without_tensor(folder: Path) -> list[str]:
    shard, name = _shard_of(folder, "model.layers.1.mlp.up_proj.weight")
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors or {"other": torch.ones(1)}, shard)
    return [shard.name, name]


def truncated(folder: Path) -> list[str]:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    return [shard.name, "truncated"]


def of_unknown_architecture(folder: Path) -> list[str]:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gpt2"}))
    return ["config.json", "gpt2", "llama"]


def _shard_of(folder: Path, tensor: str) -> tuple[Path, str]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][tensor], tensor


SPOILERS = [without_shard, with_wrong_shape, without_tensor, truncated, of_unknown_architecture]


@dataclass(frozen=True, slots=True)
class Refusal:
    """named: what the one line has to name."""

    named: list[str]
    status: int
    stderr: str


@pytest.fixture(scope="module")
def refusals(
    model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, registry: socket.socket
) -> Mapping[str, Refusal]:
    """By the spoiler's name; two workers start at a time, for each takes seconds."""
    address = f"127.0.0.1:{registry.getsockname()[1]}"

    def start(spoil: Callable[[Path], list[str]]) -> Refusal:
        folder = shutil.copytree(model_folder("llama-sharded"), tmp_path_factory.mktemp("spoilt") / "model")
        named = spoil(folder)
        return Refusal(named, *run_baton("prefill", SECRET, model=folder, registry=address))

    model_folder("llama-sharded")  # made by one thread alone
    with ThreadPoolExecutor(2) as threads:
        started = {spoil.__name__: threads.submit(start, spoil) for spoil in SPOILERS}
        return {name: refusal.result() for name, refusal in started.items()}


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_worker_refuses_a_bad_model_folder_before_it_registers(
    refusals: Mapping[str, Refusal], registry: socket.socket, spoil: Callable[[Path], list[str]]
) -> None:
    refusal = refusals[spoil.__name__]
    assert refusal.status == CONFIGURATION_ERROR
    [line] = refusal.stderr.splitlines()
    for part in refusal.named:
        assert part in line
    with pytest.raises(BlockingIOError):
        registry.accept()


def test_up_ends_when_a_worker_cannot_start(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "spoilt")
    truncated(folder)
    status, stderr = run_baton("up", model=folder, port=0)
    assert status == CONFIGURATION_ERROR
    assert "truncated" in stderr
    assert "ended with status 2 before the cluster was ready" in stderr


def test_a_model_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    status, stderr = run_baton("up", model=tmp_path / "nowhere", port=0)
    assert status == CONFIGURATION_ERROR
    assert "nowhere" in stderr


def test_an_unknown_environment_variable_is_named() -> None:
    status, stderr = run_baton("version", {"BATON_FOO": "1"})
    assert status == CONFIGURATION_ERROR
    assert "BATON_FOO" in stderr


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("[up]\nportt = 8001\n", "portt"),
        ("[upp]\nport = 8001\n", "upp"),
        ("[up]\nport = 'many'\n", "port"),
        ("[up]\nblock-size = 0\n", "block-size"),
        ("[up\n", "baton.toml"),
    ],
)
def test_a_wrong_key_of_the_configuration_file_is_named(tmp_path: Path, content: str, name: str) -> None:
    path = tmp_path / "baton.toml"
    path.write_text(content)
    status, stderr = run_baton("up", {"BATON_CONFIG": str(path)})
    assert status == CONFIGURATION_ERROR
    assert name in stderr


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ({"block_size": 0}, {}, "'--block-size': .* 1, not '0'"),
        ({"prefill": "many"}, {}, "'--prefill': .* integer, .* not 'many'"),
        ({"dtype": "int3"}, {}, "'--dtype': .*'int3'.*'float32'"),
        ({}, {"BATON_KV_BLOCKS": "few"}, "'--kv-blocks': .* integer, .* not 'few'"),
        ({}, {"BATON_PORT": "70000"}, "'--port': .* 65535, not '70000'"),
    ],
    ids=str,
)
def test_a_malformed_value_is_named_with_its_field_and_the_limit(
    options: dict[str, object], environment: dict[str, str], said: str
) -> None:
    status, stderr = run_baton("up", environment | {"COLUMNS": "200"}, **options)
    assert status == CONFIGURATION_ERROR
    assert re.search(said, stderr)


def test_a_worker_without_the_fleets_secret_does_not_start(llama: Path) -> None:
    status, stderr = run_baton("decode", model=llama)
    assert status == CONFIGURATION_ERROR
    assert "BATON_SECRET" in stderr


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"transport": "tcp,pigeon"}, "pigeon"),
        ({"attention": "flash9"}, "flash9"),
        ({"device": "abacus"}, "abacus"),
    ],
    ids=str,
)
def test_a_back_end_that_there_is_not_is_named(
    llama: Path, registry: socket.socket, options: dict[str, object], name: str
) -> None:
    address = f"127.0.0.1:{registry.getsockname()[1]}"
    status, stderr = run_baton("decode", SECRET, model=llama, registry=address, **options)
    assert status == CONFIGURATION_ERROR
    assert name in stderr


@pytest.mark.parametrize("options", [{"transport": "pigeon"}, {"spot_notice": "pigeon"}], ids=str)
def test_up_refuses_what_its_workers_would_refuse_once_and_in_their_place(options: dict[str, object]) -> None:
    status, stderr = run_baton("up", None, port=0, **options)
    assert status == CONFIGURATION_ERROR
    [line] = stderr.splitlines()
    assert "pigeon" in line


def test_a_port_in_use_is_named(llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, stderr = run_baton("up", model=llama, port=port)
    assert status == CONFIGURATION_ERROR
    [line] = stderr.splitlines()
    assert f"127.0.0.1:{port}" in line


def test_a_registry_s_port_in_use_is_named_as_its_own(llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, stderr = run_baton("router", SECRET, model=llama, port=0, registry_port=port)
    assert status == CONFIGURATION_ERROR
    assert f"127.0.0.1:{port}" in stderr
    assert stderr.endswith("[registry_port]\n")
