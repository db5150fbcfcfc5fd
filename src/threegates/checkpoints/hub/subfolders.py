"""Which folders of a repository hold weights, and what is said where one is meant that holds none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from threegates.checkpoints.hub.addresses import Address
from threegates.checkpoints.hub.repository import nearest_names
from threegates.errors import CheckpointError


def with_weights(names: Iterable[str]) -> list[str]:
    """Folders with safetensors files, by the names of a repository's files; its own folder is ''."""
    folders = {PurePosixPath(name).parent.as_posix() for name in names if name.endswith(".safetensors")}
    return sorted("" if folder == "." else folder for folder in folders)


def check_subfolder(source: Address, names: Iterable[str]) -> None:
    """Refuse a folder of a repository that holds no safetensors file where others hold some.

    Where none of them does, what there is instead is another's to say.

    Raises
    ------
    CheckpointError : it names the folders that have weights, the nearest first.
    """
    held = with_weights(names)
    if source.subfolder in held or not held:
        return
    others = [folder for folder in held if folder]
    at = source.repo + (f"@{source.revision}" if source.revision else "")
    told = nearest_names(source.subfolder, others)
    expected = f"one of its folders that have: {told}" if others else "none: it has weights itself"
    remedy = f"give {at}:{others[0]}, say" if others else f"give {at}"
    raise CheckpointError(
        f"{source.repo} has no safetensors weights in {source.subfolder or 'its own folder'}",
        where=source,
        expected=expected,
        found="no such file there",
        remedy=remedy,
    )
