"""Digests of records, each taken once: a build asks for them again and again."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from threegates.records.store import record_digest


def known_digest(record: Path) -> str:
    """`record_digest` of a file, remembered for as long as the file is the same; raises as it does."""
    stat = record.stat()
    return _digest(record, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(record: Path, inode: int, size: int, mtime_ns: int) -> str:
    return record_digest(record)
