"""JSON files that carry a version of their form: read whole, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from threegates.errors import RecordError

#: Key of the version in such a file.
VERSION = "version"
Read = TypeVar("Read")


def read_versioned(
    path: Path, version: int, read: Callable[[Mapping[str, Any]], Read], *, what: str, remedy: str, renew: str
) -> Read:
    """Give what a function makes of a JSON file's content, if the file is of a version.

    Parameters
    ----------
    version : that the file must have.
    read : from the content to what is wanted; keys and types that it misses make the file unreadable.
    what : the file in an error's words, "a release". remedy : where it cannot be read. renew : where it is of
        another version.

    Raises
    ------
    RecordError : the file is missing or damaged, is of another version, or lacks something.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content[VERSION]
        if found == version:
            return read(content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{what} cannot be read",
            where=path,
            expected=f"JSON of version {version}",
            found=f"{type(error).__name__}: {error}",
            remedy=remedy,
        ) from None
    raise RecordError(
        f"{what} is of another version", where=path, expected=version, found=found, remedy=renew
    )
