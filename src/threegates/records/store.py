"""Records: tables of results as parquet, written whole or not at all, equal bytes for equal content."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from threegates.atomic import atomic_path
from threegates.errors import RecordError
from threegates.workers import is_running

_METADATA_KEY = b"threegates"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Records:
    """The records below one folder: ``<table>/<job>-<first 12 digits of the job's digest>.parquet``."""

    folder: Path

    def path(self, table: str, job: str, digest: str) -> Path:
        """Where a job's rows of a table lie, or would lie."""
        for name in (table, job):
            if not _NAME.fullmatch(name):
                raise RecordError(
                    "a record's name must be a plain file name",
                    where=name,
                    expected="letters, digits, . _ + -",
                )
        return self.folder / table / f"{job}-{digest[:12]}.parquet"

    def exists(self, table: str, job: str, digest: str) -> bool:
        """Whether the record is there; a record that exists is whole."""
        return self.path(table, job, digest).is_file()

    def write(self, table: str, job: str, digest: str, frame: pd.DataFrame, provenance: dict) -> Path:
        """Write one record, atomically, with its provenance in the file's metadata."""
        path = self.path(table, job, digest)
        write_record(path, frame, provenance, table=table, job=job, digest=digest)
        return path

    def read(self, table: str, job: str, digest: str) -> pd.DataFrame:
        """Read one record.

        Raises
        ------
        RecordError : it is missing, damaged, or of another job.
        """
        path = self.path(table, job, digest)
        found = read_provenance(path).get("digest")
        if found != digest:
            raise RecordError(
                "a record belongs to another job", where=path.name, expected=digest, found=found
            )
        return read_parquet(path)


def write_record(
    path: Path, frame: pd.DataFrame, provenance: dict, *, table: str, job: str, digest: str
) -> None:
    """Write a job's rows of a table to a file of any name; its provenance says of which job and table."""
    write_parquet(path, frame, {**provenance, "table": table, "job": job, "digest": digest})


def write_parquet(path: Path, frame: pd.DataFrame, provenance: dict) -> None:
    """Write a frame atomically; equal frames and provenance give equal bytes."""
    write_table(path, _bare_table(frame), provenance)


def write_table(path: Path, table: pa.Table, provenance: dict) -> None:
    """Write an Arrow table as `write_parquet` writes a frame."""
    told = table.replace_schema_metadata({_METADATA_KEY: _json(provenance)})
    with atomic_path(path) as temporary:
        pq.write_table(told, temporary, compression="zstd")


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a frame; list columns come back as numpy arrays.

    Raises
    ------
    RecordError : the file is missing or is not whole.
    """
    return _read(path).to_pandas()


def read_columns(path: Path) -> list[str]:
    """Names of a record's columns.

    Raises
    ------
    RecordError : the file is missing or damaged.
    """
    return list(_schema(path).names)


def read_provenance(path: Path) -> dict:
    """The provenance that was written with a record.

    Raises
    ------
    RecordError : the file is missing, damaged, or was not written by this project.
    """
    metadata = _schema(path).metadata or {}
    if _METADATA_KEY not in metadata:
        raise RecordError("a parquet file has no provenance of threegates", where=path.name)
    return json.loads(metadata[_METADATA_KEY])


def record_digest(path: Path) -> str:
    """sha256 over a record's column names, types and values; its provenance does not count."""
    table = _read(path).replace_schema_metadata(None).combine_chunks()
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left half written below a folder; those that still write keep theirs."""
    # Folders may vanish meanwhile, when another notebook of this process has run: os.walk passes over them.
    for place, _, names in os.walk(folder):
        for name in fnmatch.filter(names, ".*.partial"):
            process = name.split(".")[-2]
            if process.isdigit() and not is_running(int(process)):
                Path(place, name).unlink(missing_ok=True)


def _bare_table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path) from error


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path) from error


def _unreadable(path: Path) -> RecordError:
    if not path.is_file():
        return RecordError("a record is missing", where=path.name, remedy="run the chapter again")
    return RecordError(
        "a record cannot be read as parquet",
        where=path.name,
        remedy="delete the file and run the chapter again",
    )
