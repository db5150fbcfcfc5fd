"""What a build of the book came to, in one file beside it: two builds are compared by these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from threegates.atomic import write_json
from threegates.digest import file_digest, runtime_versions
from threegates.errors import RecordError
from threegates.records.provenance import build_state, importlib_version
from threegates.records.versioned import read_versioned

FILE = "summary.json"
VERSION = 1
_DRAWING = ("threegates", "matplotlib", "seaborn", "jupyter-book", "sphinx", "myst-nb")


@dataclass(frozen=True)
class Summary:
    """A build's verdict table, values of the prose, figures' digests, and what it was made with."""

    folder: Path
    profile: str
    made: dict[str, object]
    versions: dict[str, str]
    verdicts: pd.DataFrame
    values: dict[str, str]
    figures: dict[str, str]

    def figure(self, name: str, kind: str) -> Path:
        """A figure's file: its data (csv) or its picture (svg, png)."""
        return self.folder / "book-src" / "figures" / f"{name}.{kind}"


def forget(build: Path) -> None:
    """Take the last summary away: pages that are being assembled anew have none yet."""
    (build / FILE).unlink(missing_ok=True)


def write_summary(
    build: Path, source: Path, profile: str, verdicts: pd.DataFrame, values: Mapping[str, str]
) -> Path:
    """Write the summary of the pages that were assembled in `source`."""
    figures = sorted((source / "figures").rglob("*.csv"))
    versions = runtime_versions() | {name: importlib_version(name) for name in _DRAWING}
    content = {
        "version": VERSION,
        "profile": profile,
        "made": build_state(),
        "versions": versions,
        "verdicts": [_bare(row) for row in verdicts.to_dict("records")],
        "values": dict(values),
        "figures": {_name(path, source): file_digest(path) for path in figures},
    }
    write_json(build / FILE, content)
    return build / FILE


def read_summary(build: Path) -> Summary:
    """Read the summary of a build from its folder.

    Raises
    ------
    RecordError : there is no such folder, no finished build in it, or a summary that cannot be read.
    """
    path = build / FILE
    remedy = "give the folder of a finished build, such as build; `threegates book` makes one"
    if not build.is_dir():
        raise RecordError("there is no such folder", where=build, expected="a build's folder", remedy=remedy)
    if not path.is_file():
        raise RecordError("that folder is no finished build", where=build, expected=FILE, remedy=remedy)
    again = "build the book once more with this code"
    what = "the summary of a build"
    return read_versioned(path, VERSION, partial(_summary, build), what=what, remedy=again, renew=again)


def _summary(build: Path, known: Mapping[str, Any]) -> Summary:
    table = pd.DataFrame(known["verdicts"])
    parts = (known[part] for part in ("profile", "made", "versions", "values", "figures"))
    profile, made, versions, values, figures = parts
    return Summary(build, profile, made, versions, table, values, figures)


def _name(path: Path, source: Path) -> str:
    return str(path.relative_to(source / "figures").with_suffix(""))


def _bare(row: Mapping) -> dict[str, object]:
    """A row as JSON knows it: no numbers but finite ones, and nothing of numpy's."""
    return {str(key): _plain(value) for key, value in row.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
