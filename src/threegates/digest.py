"""Digests of code, values and files: what decides whether something has to be computed again."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path, PurePath

from pydantic import BaseModel

PACKAGE = Path(__file__).resolve().parent

# Distributions whose version can change a number in a checkpoint or a record.
_NUMERICAL = (
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "transformers",
    "peft",
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(*modules: str, root: Path = PACKAGE) -> str:
    """sha256 of the code that the named modules reach by imports inside their package.

    Docstrings, comments and layout do not count. Imports inside functions do, and so do the
    `__init__` files of every parent package.

    Parameters
    ----------
    modules : dotted names, such as ``"threegates.measures.changes"``.
    root : folder of the package that the imports are followed in.

    Raises
    ------
    ModuleNotFoundError : one of the named modules is not in the package.
    """
    total = hashlib.sha256()
    for name in sorted(import_closure(*modules, root=root)):
        total.update(f"{name}:{_facts(_source(name, root), name).digest}\n".encode())
    return total.hexdigest()


def import_closure(*modules: str, root: Path = PACKAGE) -> set[str]:
    """Every module of the package that importing `modules` may run, themselves and parents included."""
    for name in modules:
        if _source(name, root) is None:
            raise ModuleNotFoundError(f"no module {name!r} in the package {root.name!r}", name=name)
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name, root)
        if path is None or name in reached:
            continue
        reached.add(name)
        waiting += [name.rpartition(".")[0], *_facts(path, name).imports]
    return reached


def imported_names(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that a syntax tree imports, attributes included; the caller picks the modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def value_digest(value: object) -> str:
    """sha256 of a value's canonical JSON: sorted keys, no spaces, models and dataclasses as mappings.

    Raises
    ------
    TypeError : the value holds a path (it would tie the digest to one machine) or something JSON lacks.
    ValueError : the value holds NaN or an infinity.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path | str) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def runtime_versions() -> dict[str, str]:
    """Versions that can change numbers: Python and numerical packages, without tags such as +cpu."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _NUMERICAL}


@cache
def _version(name: str) -> str:
    """What is installed; a process does not change it."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@dataclasses.dataclass(frozen=True)
class _Facts:
    digest: str
    imports: tuple[str, ...]


def _facts(path: Path | None, name: str) -> _Facts:
    assert path is not None
    stat = path.stat()
    return _parsed(path, name, stat.st_mtime_ns, stat.st_size)


@cache
def _parsed(path: Path, name: str, mtime_ns: int, size: int) -> _Facts:
    tree = ast.parse(path.read_bytes(), filename=str(path))
    imports = tuple(sorted(set(imported_names(tree, name, path.name == "__init__.py"))))
    return _Facts(tree_digest(tree), imports)


def tree_digest(tree: ast.AST) -> str:
    """sha256 of a syntax tree without its docstrings (they are removed from `tree`)."""
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _source(name: str, root: Path) -> Path | None:
    package, *rest = name.split(".")
    if package != root.name:
        return None
    place = root.joinpath(*rest)
    if (place / "__init__.py").is_file():
        return place / "__init__.py"
    file = place.with_name(place.name + ".py")
    return file if rest and file.is_file() else None


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _plain(value: object) -> object:
    if isinstance(value, PurePath):
        raise TypeError(f"a digest must not depend on a path of one machine: {value}")
    if isinstance(value, BaseModel):
        return _plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, dict):
        return _plain_mapping(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"a digest of {value} would not be canonical JSON")
    return value


def _plain_mapping(mapping: dict) -> dict[str, object]:
    wrong = [key for key in mapping if not isinstance(key, str)]
    if wrong:
        raise TypeError(f"keys of a digested mapping must be strings, found {wrong[0]!r}")
    return {str(key): _plain(item) for key, item in mapping.items()}
