"""The import direction of the design, read from the sources."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "baton": "baton",
    "baton.kvtransfer": "kvtransfer",
    "baton.router": "services/router",
    "baton.prefill": "services/prefill",
    "baton.decode": "services/decode",
    "baton.worker": "services/worker",
    "baton.sim": "services/sim",
    "baton.cli": "services/cli",
}
LEAVES = {
    "baton.errors",
    "baton.request",
    "baton.lifecycle",
    "baton.fleet",
    "baton.block_hash",
    "baton.events",
}
SERVICES = {"baton.router", "baton.prefill", "baton.decode", "baton.worker", "baton.sim", "baton.cli"}
BARE_MACHINE = {"torch", "numpy", "safetensors", "msgspec", "xxhash", "baton"}
WHERE_ASKED_FOR = {"flashinfer", "ucxx", "triton"}
"""Extras: whoever does not choose what needs them never imports them."""


def modules_of(package: str) -> dict[str, Path]:
    folder = ROOT / FOLDERS[package]
    return {
        ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in folder.rglob("*.py")
    }


@cache
def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def reaches(imports: set[str], package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in imports)


def violations(modules: dict[str, Path], forbidden: set[str]) -> list[str]:
    return [
        f"{module} imports {package}"
        for module, path in modules.items()
        for package in forbidden
        if reaches(imports_of(path), package)
    ]


def test_baton_never_reaches_up_into_services() -> None:
    assert violations(modules_of("baton"), SERVICES) == []


def test_leaf_types_import_no_other_part() -> None:
    modules = {name: path for name, path in modules_of("baton").items() if name in LEAVES}
    assert set(modules) == LEAVES
    forbidden = {"baton.wire", "baton.rpc", "baton.discovery", "baton.engine", "baton.kvtransfer", *SERVICES}
    assert violations(modules, forbidden) == []


def test_engine_and_kvtransfer_never_import_each_other() -> None:
    engine = {n: p for n, p in modules_of("baton").items() if n.startswith("baton.engine")}
    assert violations(engine, {"baton.kvtransfer", "baton.wire", "baton.rpc", "baton.discovery"}) == []
    above = {"baton.engine", "baton.wire", "baton.rpc", "baton.discovery", *SERVICES}
    assert violations(modules_of("baton.kvtransfer"), above) == []


@pytest.mark.parametrize("role", ["baton.router", "baton.prefill", "baton.decode"])
def test_roles_never_import_one_another(role: str) -> None:
    assert violations(modules_of(role), SERVICES - {role}) == []


def test_only_the_composition_roots_import_roles() -> None:
    assert violations(modules_of("baton.worker"), {"baton.router", "baton.sim", "baton.cli"}) == []
    running = {"baton.prefill", "baton.decode", "baton.worker", "baton.cli"}
    assert violations(modules_of("baton.sim"), running) == []


def test_engine_and_kvtransfer_need_no_web_framework() -> None:
    engine = {n: p for n, p in modules_of("baton").items() if n.startswith("baton.engine")}
    roots = {
        name.split(".")[0]
        for path in [*engine.values(), *modules_of("baton.kvtransfer").values()]
        for name in imports_of(path)
    }
    foreign = roots - BARE_MACHINE - WHERE_ASKED_FOR - set(sys.stdlib_module_names)
    assert foreign == set()


def test_a_router_is_light_it_does_not_load_what_computes() -> None:
    loaded = "import sys, baton.cli.router, baton.router.router; print(*sys.modules)"
    told = subprocess.run(
        [sys.executable, "-P", "-c", loaded], capture_output=True, text=True, check=True, timeout=60
    )
    assert not {"torch", "triton"}.intersection(told.stdout.split())
