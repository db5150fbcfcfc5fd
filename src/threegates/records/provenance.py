"""Where things lie, and which state of the code made a result. Nothing here names a user or a machine."""

from __future__ import annotations

import importlib.metadata
import subprocess
import time
from functools import cache
from pathlib import Path

from threegates.definitions import Reach
from threegates.digest import PACKAGE, code_digest, runtime_versions
from threegates.environment import variable
from threegates.errors import ThreeGatesError


def project_root() -> Path:
    """The folder with claims.yaml and notebooks/.

    That is ``THREEGATES_ROOT``, else what lies above the package, else above the working folder.

    Raises
    ------
    ThreeGatesError : there is none.
    """
    named = variable("THREEGATES_ROOT")
    here = Path.cwd()
    candidates = [Path(named)] if named else [PACKAGE.parent.parent, here, *here.parents]
    for folder in candidates:
        if (folder / "claims.yaml").is_file():
            return folder.resolve()
    raise ThreeGatesError(
        "the project's folder was not found",
        expected="a folder with claims.yaml and notebooks/",
        remedy="run the command inside a clone of the project, or set THREEGATES_ROOT to it",
    )


def build_folder() -> Path:
    """Where everything that is built lands: ``THREEGATES_BUILD``, else build/ in the project."""
    named = variable("THREEGATES_BUILD")
    return Path(named).resolve() if named else project_root() / "build"


def tracked_manifest() -> Path:
    """The manifest that people write; a project need not have one."""
    return project_root() / "data_manifest.yaml"


def record_provenance(reach: Reach, **details: object) -> dict:
    """What a record states about its making: the digest of its code, versions, and the given details.

    Deterministic by design: time, commit and dirty flag live beside results (`build_state`), not in them.
    """
    return {
        "threegates": importlib_version("threegates"),
        **_code_state(reach),
        "threads": 1,
        **details,
    }


@cache
def _code_state(reach: Reach) -> dict:
    """Digest of the code, and versions: a process runs the code and the packages that it once imported."""
    return {
        "code": code_digest(*reach.roots, outside=reach.outside, inside=reach.inside),
        "versions": runtime_versions(),
    }


def build_state() -> dict:
    """Time, commit and whether the working tree differed from it: kept beside a result, never in it."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _dirty(),
    }


def importlib_version(distribution: str) -> str:
    """Version of an installed distribution, ``absent`` where there is none."""
    try:
        return importlib.metadata.version(distribution).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _dirty() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
