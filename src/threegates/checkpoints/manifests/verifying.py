"""Verifying: whether the files on this machine are those that a manifest lists, without any network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, read_manifest
from threegates.checkpoints.tensors import sha256_of

Status = Literal["whole", "partly here", "not here", "differs", "not locked"]


@dataclass(frozen=True)
class Verified:
    """What became of one entry's files.

    status : "whole", every listed file is here with its sha256; "partly here", some are missing; "not here",
        all are; "differs", at least one is another file; "not locked", the manifest lists none.
    missing : names of files that are not here.
    differing : by name, the file's place, its listed sha256 and the one found.
    """

    name: str
    status: Status
    listed: int = 0
    missing: tuple[str, ...] = ()
    differing: tuple[tuple[str, Path, str, str], ...] = ()

    def text(self) -> str:
        """One line, and for each file that differs where it is, what was expected, and what was found."""
        told = {
            "whole": f"{self.listed} files",
            "partly here": f"{len(self.missing)} of {self.listed} files are missing: "
            + ", ".join(self.missing[:5]),
            "not here": f"none of {self.listed} files",
            "not locked": f"no sha256 is listed; `threegates lock {self.name}` lists them",
            "differs": f"{len(self.differing)} of {self.listed} files",
        }
        lines = [f"{self.status:<11} {self.name}: {told[self.status]}"]
        for name, place, expected, found in self.differing:
            # In the Hub's cache the place holds a link; unless its target goes too, it is taken again.
            places = " and ".join(dict.fromkeys([str(place), str(place.resolve())]))
            lines += [
                f"    {name}: {places}",
                f"      expected: sha256 {expected}",
                f"      found: sha256 {found}",
            ]
        return "\n".join(lines)


@dataclass(frozen=True)
class VerifyReport:
    """What became of each entry that was verified."""

    entries: tuple[Verified, ...]

    @property
    def ok(self) -> bool:
        """Whether no file differs from the listed one; what is not here is no fault."""
        return not any(one.status == "differs" for one in self.entries)

    def text(self) -> str:
        """One line an entry, then what to do."""
        lines = [one.text() for one in self.entries]
        if not self.ok:
            lines.append(
                "what to do: delete the files named above and fetch them again; if it happens twice, "
                "the repository was changed, or the manifest is wrong"
            )
        return "\n".join(lines)


def verify(
    manifest_path: str | os.PathLike,
    names: Sequence[str] | None = None,
    cache_dir: str | os.PathLike | None = None,
    progress: Callable[[str], None] | None = None,
) -> VerifyReport:
    """Hold the files on this machine against the sha256 that a manifest lists; asks no network.

    Parameters
    ----------
    manifest_path : the manifest.
    names : entries; none takes them all.
    cache_dir : the Hub's cache, huggingface_hub's own by default.
    progress : called with a line before each entry.

    Raises
    ------
    ManifestError : the manifest breaks its schema, or has no such entry.
    """
    manifest = read_manifest(manifest_path)
    chosen = (
        manifest.checkpoints if names is None else [manifest.entry(name) for name in dict.fromkeys(names)]
    )
    cache = Path(cache_dir if cache_dir is not None else constants.HF_HUB_CACHE).expanduser()
    verified = []
    for number, entry in enumerate(chosen, 1):
        if progress:
            progress(f"{number}/{len(chosen)} {entry.name}")
        verified.append(_verified(entry, _folder(manifest, entry, cache)))
    return VerifyReport(tuple(verified))


def _folder(manifest: Manifest, entry: Entry, cache: Path) -> Path | None:
    """Where an entry's files would be; None where that is not determined."""
    if isinstance(entry.source, Folder):
        return entry.folder(manifest)
    if entry.source.revision is None:
        return None
    place = repo_folder_name(repo_id=entry.source.repo, repo_type="model")
    return cache / place / "snapshots" / entry.source.revision / (entry.source.subfolder or "")


def _verified(entry: Entry, folder: Path | None) -> Verified:
    if folder is None or not entry.files:
        return Verified(entry.name, "not locked")
    here = {name: folder / name for name in sorted(entry.files) if (folder / name).is_file()}
    found = {name: sha256_of(place) for name, place in here.items()}
    differing = [(name, here[name], entry.files[name], found[name]) for name in here]
    differing = [one for one in differing if one[2] != one[3]]
    missing = tuple(sorted(entry.files.keys() - here.keys()))
    status: Status = (
        "differs" if differing else "whole" if not missing else "partly here" if here else "not here"
    )
    return Verified(entry.name, status, len(entry.files), missing, tuple(differing))
