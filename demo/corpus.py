"""The text that any machine with Python has: docstrings, help topics and licences.

Docstrings are read from source files without importing them. Only functions written in C
are asked for their `__doc__`, because they have no source to read. Nothing from
site-packages is used, so the corpus depends on the Python version alone.
"""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import re
import sysconfig
from collections.abc import Iterator

from demo import prose

_STDLIB = pathlib.Path(sysconfig.get_paths()["stdlib"])
_COMMON_LICENCES = pathlib.Path("/usr/share/common-licenses")
_SKIPPED = frozenset(
    (
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idle_test",
        "ntpath.py",
        "__pycache__",
        "lib-dynload",
    )
)
_PUBLIC_NAMES = {
    "posixpath": "os.path",
    "genericpath": "os.path",
    "random.Random": "random",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
    "_collections_abc": "collections.abc",
    "_weakrefset": "weakref",
}
_COMPILED_MODULES = (
    "builtins", "collections", "functools", "gc", "itertools", "math", "operator", "random", "select", "sys",
    "time", "zlib",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Doc:
    """What one documented thing is called and what is said about it."""

    name: str
    kind: str  # "module", "class", "function" or "method"
    paragraphs: tuple[str, ...]
    public: bool


def _module_name(path: pathlib.Path) -> str:
    parts = list(path.relative_to(_STDLIB).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def _public_name(name: str) -> str:
    for private, public in _PUBLIC_NAMES.items():
        if name == private or name.startswith(private + "."):
            return public + name.removeprefix(private)
    return name


def _walk(tree: ast.AST, owner: str, inside_class: bool) -> Iterator[tuple[str, str, str]]:
    """(name, kind, docstring) of every documented definition below a node."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{owner}.{node.name}"
            is_class = isinstance(node, ast.ClassDef)
            if text := ast.get_docstring(node):
                yield name, "class" if is_class else "method" if inside_class else "function", text
            if is_class:
                yield from _walk(node, name, inside_class=True)
        elif isinstance(node, ast.If | ast.Try):
            yield from _walk(node, owner, inside_class)


def _sources() -> Iterator[tuple[str, ast.Module]]:
    """(module name, syntax tree) of the standard library's files, in a fixed order."""
    for path in sorted(_STDLIB.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(_STDLIB).parts):
            try:
                yield _module_name(path), ast.parse(path.read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue  # deliberately broken files for lib2to3's own tests


def _re_exported(package: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(where a name is defined, the shorter name a package gives it), "*" for all of a module."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            source = f"{package}.{node.module}" if node.level == 1 else node.module
            if source.startswith(package + "."):
                for alias in node.names:
                    yield f"{source}.{alias.name}", f"{package}.{alias.name}"


def _python_docs() -> Iterator[tuple[str, str, str]]:
    sources = list(_sources())
    exported = {inner: outer for name, tree in sources for inner, outer in _re_exported(name, tree)}
    for module, tree in sources:
        if text := ast.get_docstring(tree):
            yield module, "module", text
        for name, kind, doc in _walk(tree, module, inside_class=False):
            local = name.removeprefix(module + ".")
            top = f"{module}.{local.split('.')[0]}"
            if f"{module}.*" in exported:
                name = f"{module.rpartition('.')[0]}.{local}"
            elif top in exported:
                name = exported[top] + name.removeprefix(top)
            yield name, kind, doc


def _compiled_docs() -> Iterator[tuple[str, str, str]]:
    """Functions, types and methods written in C, by the name users write: `len`, `str.join`, `math.sqrt`."""
    for module_name in _COMPILED_MODULES:
        module = importlib.import_module(module_name)
        prefix = "" if module_name == "builtins" else module_name + "."
        for key, value in sorted(vars(module).items()):
            text = getattr(value, "__doc__", None)
            if not (callable(value) and isinstance(text, str)) or inspect.isfunction(value):
                continue
            yield prefix + key, "class" if inspect.isclass(value) else "function", text
            if inspect.isclass(value) and not issubclass(value, BaseException):
                for name, member in sorted(vars(value).items()):
                    if isinstance(doc := getattr(member, "__doc__", None), str) and not name.startswith("_"):
                        yield f"{prefix}{key}.{name}", "method", doc


def _is_public(name: str) -> bool:
    hidden = name.startswith(
        ("lib2to3", "idlelib", "tkinter", "turtle", "distutils", "ensurepip", "encodings.")
    )
    return not hidden and not any(part.startswith("_") for part in name.split("."))


def docs() -> list[Doc]:
    """Every documented thing with English in its docstring, each text once, under its best known name."""
    found: list[Doc] = []
    for name, kind, text in (*_compiled_docs(), *_python_docs()):
        if english := tuple(prose.paragraphs(text)):
            name = _public_name(name)
            found.append(Doc(name, kind, english, _is_public(name)))
    found.sort(key=lambda doc: (not doc.public, doc.name not in prose.words("famous")))
    seen: set[str] = set()
    unique = []
    for doc in found:
        key = re.sub(r"\W+", " ", " ".join(doc.paragraphs)).lower()
        if key not in seen and doc.name not in seen:
            seen.update((key, doc.name))
            unique.append(doc)
    return unique


def _topics() -> Iterator[str]:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    yield from (topics[name] for name in sorted(topics))


def _licences() -> Iterator[str]:
    for path in [_STDLIB / "LICENSE.txt", *sorted(_COMMON_LICENCES.glob("*"))]:
        if path.is_file() and not path.is_symlink():
            yield path.read_text(encoding="utf-8", errors="ignore")


def _comments() -> Iterator[str]:
    """Comments of at least three lines in the standard library's sources."""
    for path in sorted(_STDLIB.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(_STDLIB).parts):
            text = path.read_text(encoding="utf-8", errors="ignore")
            for block in re.findall(r"(?:^[ \t]*#(?: .*)?\n){3,}", text, re.MULTILINE):
                yield re.sub(r"^[ \t]*# ?", "", block, flags=re.MULTILINE)


def texts() -> list[list[str]]:
    """Running text as lists of paragraphs; a paragraph that occurs twice is kept once."""
    seen: set[str] = set()
    kept: list[list[str]] = []
    sources = (
        *(list(doc.paragraphs) for doc in docs()),
        *(prose.paragraphs(text) for text in (*_topics(), *_licences(), *_comments())),
    )
    for english in sources:
        new = [p for p in english if p.lower() not in seen]
        seen.update(p.lower() for p in new)
        if new:
            kept.append(new)
    return kept
