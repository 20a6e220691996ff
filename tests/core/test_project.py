"""The documents, pins and deployment files say what is true of the code beside them."""

import asyncio
import os
import re
import shlex
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.core import TyperGroup

from baton import __version__
from baton.cli.main import app
from baton.cli.process_setup import DEMO_NAME
from baton.cli.settings import check_environment, read_config_file
from baton.discovery import parse_address
from baton.rpc import Server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose/compose.yaml").read_text())
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("compose/*.md")])
NOT_SOURCES = {".git", "build", "dist", "__pycache__"}
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
PATH_OF_SOMEBODYS_MACHINE = re.compile(r"(?<![\w.:/])/(home|root|Users|work|workspace|mnt)/\w")


@cache
def commands() -> TyperGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return group


def options_of(command: str) -> dict[str, Any]:
    """Long options of one command, by name, with their defaults."""
    return {name: p.default for p in commands().commands[command].params for name in p.opts}


def command_lines(text: str) -> list[list[str]]:
    """The words after `baton` of every command in an indented block or in `inline code`."""
    pattern = r"(?:^ {4}|`)(?:(?:\.venv/bin/)?baton (?P<baton>[^`\n]+)|make run ARGS=(?P<make>[^`\n]+))"
    found = []
    for match in re.finditer(pattern, text, re.MULTILINE):
        words = shlex.split(match["baton"] or match["make"], comments=True)
        found.append(words if match["baton"] else ["up", *shlex.split(words[0])])
    return found


def services(file: str = "compose.yaml") -> dict[str, dict[str, Any]]:
    """Compose's services, with each `${NAME:-default}` as its default and `$$` as `$`."""
    text = re.sub(r"\$\{\w+:[-?]([^}]*)\}", r"\1", (ROOT / "compose" / file).read_text())
    found = yaml.safe_load(text.replace("$$", "$"))["services"]
    assert isinstance(found, dict)
    return found


@cache
def sources() -> dict[Path, str]:
    """Text by path, of whatever the repository has and nothing that was built or installed in it."""
    found = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in NOT_SOURCES and (f == ".ci" or not f.startswith("."))]
        for path in (Path(folder, name) for name in names if name not in NOT_SOURCES):
            if path.suffix not in {".safetensors", ".png", ".so"}:
                found[path] = path.read_text(encoding="utf-8")
    return found


# --- documents ---------------------------------------------------------------------------------------------


def test_every_command_in_the_readme_exists_with_its_options() -> None:
    lines = command_lines(README)
    assert {words[0] for words in lines} >= {"up", "router", "prefill", "decode", "chat"}
    for words in lines:
        command = next(word for word in words if word in commands().commands)
        known = {*options_of(command), *(name for p in commands().params for name in p.opts)}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, words


def test_the_readme_lists_all_options_of_up_with_their_defaults() -> None:
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| ([^|]+) \|", README, re.MULTILINE))
    options = options_of("up")
    options.pop("--help", None)
    assert set(rows) == set(options)
    assert {name: str(value) for name, value in options.items() if value is not None} == {
        name: rows[name] for name, value in options.items() if value is not None
    }


def test_the_examples_use_the_name_of_the_demo_model() -> None:
    assert re.findall(r'model="([^"]+)"', README) == [DEMO_NAME]
    assert f"--served-model-name={DEMO_NAME}" in services()["router"]["command"]


def test_the_configuration_file_of_the_readme_is_accepted(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.+?)```", README, re.DOTALL)
    assert example is not None
    path = tmp_path / "baton.toml"
    path.write_text(example[1])
    assert read_config_file(path, commands())["up"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text()
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", text) if not re.match(r"https?:", link)}
    assert [link for link in sorted(links) if not (document.parent / link).exists()] == []
    top_folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {".venv", "build"}
    named = {n for n in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if n.split("/")[0] in top_folders}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    modules = {path.name for path in sources() if path.suffix == ".py"}
    assert set(re.findall(r"`(\w+\.py)`", text)) <= modules


def test_the_changelog_has_the_current_version() -> None:
    assert PYPROJECT["version"] == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_apache_2_word_for_word() -> None:
    assert PYPROJECT["license"] == "Apache-2.0"
    assert sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path, text in sources().items()
        for match in PATH_OF_SOMEBODYS_MACHINE.finditer(text)
    ]
    assert found == []


# --- pins --------------------------------------------------------------------------------------------------


def test_every_dependency_is_pinned_to_a_version_that_any_index_can_have() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    extras = PYPROJECT["optional-dependencies"]
    wanted = [*PYPROJECT["dependencies"], *extras["dev"], *extras["ucx"]]
    roots = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted}
    assert roots - names == {"baton"}  # dev includes an extra of its own
    assert [name for name, version in pins.items() if "+" in version or "@" in version] == []


# --- compose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["compose.yaml", "consul.yaml"])
@pytest.mark.parametrize("name", ["router", "prefill", "decode"])
def test_every_service_starts_with_options_that_its_command_accepts(name: str, file: str) -> None:
    service = services()[name] | services(file)[name]
    role, *arguments = service["command"]
    assert role == name
    extra = re.findall(r"(--[\w-]+)=", " ".join(service.get("entrypoint", [])))
    commands().commands[role].make_context(role, [*arguments, *(f"{option}=here" for option in extra)])


def test_every_service_needs_the_secret_and_says_so() -> None:
    for service in COMPOSE["services"].values():
        assert service["environment"]["BATON_SECRET"].startswith("${BATON_SECRET:?")


def test_workers_find_the_registry_where_the_router_serves_it() -> None:
    port = next(word for word in services()["router"]["command"] if word.startswith("--registry-port="))
    for role in ("prefill", "decode"):
        assert f"--registry=router:{port.partition('=')[2]}" in services()[role]["command"]


def test_on_consul_all_meet_where_consul_is_and_know_their_variables() -> None:
    on_consul = services("consul.yaml")
    for name in ("router", "prefill", "decode"):
        environment = on_consul[name]["environment"]
        check_environment(commands(), environment)
        address = parse_address(environment["BATON_REGISTRY"])
        assert (address.scheme, address.host, address.path) == ("consul", "consul", "baton")
        assert not [word for word in on_consul[name]["command"] if "registry" in word]


def test_the_image_is_built_from_files_that_exist_and_that_the_context_has() -> None:
    dockerfile = (ROOT / "compose/Dockerfile").read_text()
    copies = [line.split()[1:-1] for line in dockerfile.splitlines() if re.match(r"COPY (?!--from)", line)]
    copied = {source.rstrip("/") for line in copies for source in line if not source.startswith("--")}
    allowed = re.findall(
        r"^!([^*\n]+?)(?:/\*\*)?$", (ROOT / "compose/Dockerfile.dockerignore").read_text(), re.M
    )
    assert copied == set(allowed)
    assert [source for source in copied if not (ROOT / source).exists()] == []


async def exit_status_of_health(kind: str, target: str) -> int:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "compose/health.py"), kind, target
    )
    return await process.wait()


async def test_health_of_a_worker_is_what_its_grpc_server_says() -> None:
    server = Server("127.0.0.1", 0, b"secret")
    await server.start()
    address = f"127.0.0.1:{server.port}"
    try:
        assert await exit_status_of_health("grpc", address) == 0
        await server.set_serving(False)
        assert await exit_status_of_health("grpc", address) == 1
    finally:
        await server.stop(0)
    assert await exit_status_of_health("grpc", address) == 1


@contextmanager
def http_server(status: int) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/ready"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(("status", "exit_status"), [(200, 0), (503, 1)])
async def test_health_of_a_router_is_its_http_status(status: int, exit_status: int) -> None:
    with http_server(status) as url:
        assert await exit_status_of_health("http", url) == exit_status
