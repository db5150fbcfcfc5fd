"""Checkpoints of the Hugging Face Hub: download at a fixed commit, check every file's sha256, open."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from threegates.checkpoints.manifest import Entry, Folder, Hub, Manifest
from threegates.checkpoints.tensors import INDEX, Checkpoint, sha256_of
from threegates.errors import CheckpointError

# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
WEIGHTS = ("model.safetensors", "model-*.safetensors", INDEX)
PATTERNS = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
# What the client raises, most special first, and what a user can do about it.
REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "accept the licence on the repository's page, then run `hf auth login`"),
    (RepositoryNotFoundError, "correct the repository's name; if it is private, run `hf auth login`"),
    (RevisionNotFoundError, "correct the revision in the manifest: the Hub has no such commit"),
    (RemoteEntryNotFoundError, "the Hub lists this file but does not serve it: try again later"),
    (LocalEntryNotFoundError, "it is not whole in the cache: run once with the network on"),
)


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine, and the commit they are of."""

    folder: Path
    revision: str


def resolve(
    entry: Entry,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Snapshot:
    """Download what is missing of a Hub entry, check it against the manifest, and say where it is.

    An entry without a revision takes the newest commit; the snapshot says which one that was. Files that the
    entry lists are checked by sha256 every time, because the client checks only their length.
    """
    source = entry.source
    if not isinstance(source, Hub):
        raise CheckpointError(
            f"checkpoint '{entry.name}' is in a folder, not on the Hub",
            where=source.path,
            remedy="open it with open_entry, which takes both",
        )
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    try:
        folder = Path(
            snapshot_download(
                source.repo,
                revision=source.revision,
                cache_dir=cache,
                allow_patterns=list(PATTERNS),
                local_files_only=offline,
                endpoint=endpoint,
            )
        )
    except Exception as error:
        # The client lets its HTTP library's errors through, and that library changes between versions.
        raise _download_error(source, error) from error
    if not any(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise _no_weights(source, folder.name, offline, endpoint)
    verify_files(folder, entry.files)
    return Snapshot(folder, folder.name)


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check each listed file's sha256; the first that is missing or differs raises CheckpointError."""
    for name, expected in sorted(files.items()):
        path = folder / name
        found = sha256_of(path) if path.is_file() else "no such file"
        if found != expected:
            # In the Hub's cache the snapshot holds a link; unless its target goes too, it is taken again.
            doomed = " and ".join(dict.fromkeys([str(path), str(path.resolve())]))
            raise CheckpointError(
                f"{name} is not the file that the manifest lists",
                where=path,
                expected=f"sha256 {expected}",
                found=found if found == "no such file" else f"sha256 {found}",
                remedy=f"delete {doomed} and run again; if it happens twice, the manifest is wrong"
                " or the repository was changed",
            )


def open_entry(
    manifest: Manifest,
    entry: Entry,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Checkpoint:
    """Open a manifest's checkpoint, wherever it is; one from the Hub knows its commit."""
    if isinstance(entry.source, Folder):
        folder = entry.folder(manifest)
        checkpoint = Checkpoint.open(folder)
        verify_files(folder, entry.files)
        return checkpoint
    snapshot = resolve(entry, cache_dir, offline, endpoint)
    return replace(Checkpoint.open(snapshot.folder), revision=snapshot.revision)


def open_named(
    text: str,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Checkpoint:
    """Open what a user typed: a folder if there is one of that name, else ORG/REPO or ORG/REPO@COMMIT."""
    if Path(text).is_dir():
        return Checkpoint.open(text)
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([0-9a-f]{40}))?", text)
    if match is None:
        raise CheckpointError(
            f"'{text}' is neither a folder nor a Hub repository",
            where=Path(text).absolute(),
            expected="an existing folder, ORG/REPO, or ORG/REPO@COMMIT with all 40 digits",
            found="no such folder",
            remedy="correct the path",
        )
    entry = Entry(name=text.replace("/", "--"), source=Hub(repo=match[1], revision=match[2]), method="mixed")
    snapshot = resolve(entry, cache_dir, offline, endpoint)
    return replace(Checkpoint.open(snapshot.folder), revision=snapshot.revision)


def _named(source: Hub) -> str:
    return f"{source.repo} at {source.revision or 'its newest commit'}"


def _download_error(source: Hub, error: Exception) -> CheckpointError:
    known = (remedy for kind, remedy in REMEDIES if isinstance(error, kind))
    message = " ".join(str(error).split())[:400]
    return CheckpointError(
        f"the Hub repository {source.repo} cannot be downloaded",
        where=_named(source),
        found=f"{type(error).__name__}: {message}",
        remedy=next(known, "check the network and the free disk space, then run again: whole files are kept"),
    )


def _no_weights(source: Hub, revision: str, offline: bool, endpoint: str | None) -> CheckpointError:
    try:
        names = [] if offline else HfApi(endpoint=endpoint).list_repo_files(source.repo, revision=revision)
    except Exception:
        # The list only makes the message better; its own failure must not hide what is wrong.
        names = []
    heavy = [name for name in names if re.search(r"\.(safetensors|bin|pt|pth|gguf|h5|msgpack)$", name)]
    return CheckpointError(
        "the Hub repository has no safetensors weights of a whole model",
        where=_named(source),
        expected=" or ".join(WEIGHTS),
        found=", ".join(heavy[:5]) or "none of them",
        remedy="pickle and quantised files are not read, adapters must be merged first: "
        "take another upload of this model",
    )
