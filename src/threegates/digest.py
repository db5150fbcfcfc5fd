"""Digests of code, values, files and versions: what decides whether something has to be computed again."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import platform
from enum import Enum
from functools import cache
from pathlib import Path, PurePath

from pydantic import BaseModel

from threegates.canonical import imported_names
from threegates.definitions import PACKAGE, code_digest

__all__ = [
    "PACKAGE",
    "code_digest",
    "digest_versions",
    "file_digest",
    "imported_names",
    "runtime_versions",
    "value_digest",
]

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


def digest_versions() -> dict[str, str]:
    """Versions of the packages that can change numbers, without tags such as +cpu: what digests cover."""
    return {name: _version(name) for name in _NUMERICAL}


def runtime_versions() -> dict[str, str]:
    """The same with Python's, which changes no number: what a result's provenance states."""
    return {"python": platform.python_version()} | digest_versions()


@cache
def _version(name: str) -> str:
    """What is installed; a process does not change it."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "absent"


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
