"""Looking at a measurement that is not finished: the rows of the tensors that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from threegates.checkpoints.formats.roles import layer
from threegates.errors import RecordError
from threegates.geometry.nulls.table import NULLS
from threegates.jobs.kinds.known import KINDS
from threegates.measures.by_tensor import typed
from threegates.measures.tensor_table import axis_columns, table_columns

#: Stands behind a table that is not whole.
UNFINISHED = "unfinished"


def parts_folder(out: Path | str) -> Path:
    """Where the parts of a measurement lie until `out` is written: ``OUT.parts`` beside it."""
    path = Path(out).absolute()
    return path.with_name(path.name + ".parts")


def read_parts(out: Path | str, table: str = "tensor") -> pd.DataFrame:
    """The rows that an unfinished measurement has found so far, by layer and name.

    Parameters
    ----------
    out : the file that the measurement was told to write; `threegates measure` may be at work on it, or may
        have been killed.
    table : ``tensor`` or ``axis``.

    Returns
    -------
    The table's columns and types, and a last column `unfinished`, true in every row, so that no copy of the
    table can be taken for a whole one. Which tensors are missing only the checkpoints know.

    Raises
    ------
    RecordError : there are no parts, or they cannot be read.
    """
    folder = _newest(Path(out))
    known = KINDS["table"].tables
    if table not in known:
        raise RecordError(
            "parts hold no such table",
            where=folder,
            expected=" or ".join(known),
            found=table,
        )
    parts = [_read(path) for path in folder.glob("*.json")]
    rows = [row for part in parts for row in part.get(table, [])]
    # Types are set column by column, which leaves a frame of many pieces; a copy is whole.
    frame = typed(sorted(rows, key=_place), _columns_of(table, rows)).copy()
    return frame.assign(**{UNFINISHED: True})


def _columns_of(table: str, rows: Sequence[Mapping]) -> dict[str, str]:
    """The table's columns, and those of any other null that the rows were measured with."""
    whole = {"tensor": table_columns, "axis": axis_columns}[table](tuple(NULLS.values()))
    held = set(KINDS["table"].tables[table]).union(*rows)
    return {name: kind for name, kind in whole.items() if name in held}


def _newest(out: Path) -> Path:
    """The folder of the parts that were written last: older ones are of other inputs, parameters or code."""
    found = [path.parent for path in parts_folder(out).glob("*/*.json")]
    if not found:
        raise RecordError(
            "there is no unfinished measurement",
            where=parts_folder(out),
            remedy=f"it is finished: read {out}" if out.is_file() else "start it with `threegates measure`",
        )
    return max(set(found), key=lambda folder: (folder.stat().st_mtime_ns, folder.name))


def _read(path: Path) -> dict[str, list[dict]]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(
            "a part cannot be read",
            where=path,
            remedy="if the measurement has just ended, read its output; else remove this file and go on",
        ) from error


def _place(row: Mapping) -> tuple[int, str, str]:
    number = layer(row["tensor"])
    return -1 if number is None else number, row["tensor"], row.get("axis", "")
