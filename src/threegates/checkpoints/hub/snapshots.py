"""Checkpoints of the Hugging Face Hub: download at a fixed commit, check every file's sha256, open."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_cached_repo_tree, is_offline_mode, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from tqdm.auto import tqdm

from threegates.atomic import write_text
from threegates.checkpoints.beside import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from threegates.checkpoints.formats.headers import read_json
from threegates.checkpoints.hub.addresses import Address, parse_address
from threegates.checkpoints.hub.download import download, link, storage_of
from threegates.checkpoints.hub.ranged import RangedCheckpoint, index_files, open_ranged
from threegates.checkpoints.hub.remote_headers import remote_header
from threegates.checkpoints.hub.repository import commit_of, known_commit, listed
from threegates.checkpoints.hub.subfolders import check_subfolder
from threegates.checkpoints.hub.transfer import RemoteFile, git_sha1, hub_error
from threegates.checkpoints.manifests.manifest import Entry, Folder, Hub, Manifest
from threegates.checkpoints.quantised import refuse_quantised
from threegates.checkpoints.tensors import INDEX, Checkpoint, sha256_of
from threegates.errors import CheckpointError

_HEAVY = re.compile(r"\.(safetensors|bin|pt|pth|gguf|h5|msgpack)$")
# Not "*.safetensors": some repositories hold the same weights a second time as consolidated.safetensors.
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors-*.safetensors", INDEX)
PATTERNS = (
    *WEIGHTS,
    "config.json",
    "generation_config.json",
    ADAPTER_CONFIG,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
# What says which files hold the weights, and as what.
_FIRST = ("config.json", INDEX)


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's folder in a repository's files on this machine, and the commit they are of."""

    folder: Path
    revision: str


def resolve(
    entry: Entry,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Snapshot:
    """Download what is missing of a Hub entry, check it against the manifest, and say where it is.

    An entry without a revision takes the newest commit, of its branch or tag where it names one; the snapshot
    says which one that was. Files that the entry lists are checked by sha256 every time, because the client
    checks only their length.
    """
    source = entry.source
    if not isinstance(source, Hub):
        raise CheckpointError(
            f"checkpoint '{entry.name}' is in a folder, not on the Hub",
            where=source.path,
            remedy="open it with open_entry, which takes both",
        )
    snapshot = fetch(address_of(source), cache_dir, offline, endpoint)
    verify_files(snapshot.folder, entry.files)
    return snapshot


def fetch_adapter(
    source: Address,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Snapshot | None:
    """Download the two files of an adapter, checked as `fetch` does; None where there is none.

    Raises
    ------
    CheckpointError : the repository cannot be had, or holds a file that is not the one that is listed.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    offline = offline or is_offline_mode()
    ask = known_commit if offline else partial(commit_of, endpoint=endpoint)
    commit = ask(source.repo, source.revision)
    source = source.at(commit) if commit else source
    patterns = _below(source, (ADAPTER_CONFIG, ADAPTER_WEIGHTS))
    way: dict[str, Any] = {"local_files_only": True} if offline else {"endpoint": endpoint}
    folder = _client(source, cache, patterns, **way)
    inside = folder / source.subfolder
    if not all((inside / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return None
    _check_content(folder, patterns)
    if not offline:
        _remember(source, cache)
    return Snapshot(inside, folder.name)


def address_of(source: Hub) -> Address:
    """Where a manifest's checkpoint of the Hub is: at its commit, else where its branch or tag stands."""
    return Address(source.repo, source.revision or source.ref, source.subfolder or "")


def fetch(
    source: Address | Hub | str,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Snapshot:
    """Download what is missing of a checkpoint of the Hub into huggingface_hub's cache.

    Every file is checked against the sha256 that the Hub lists (git's sha1 where git holds it). After a kill
    the next call goes on where the last one was; what is whole at a fixed commit takes no request.

    Parameters
    ----------
    source : a repository, its newest commit or a branch, tag or commit of it, and which folder in it; or that
        as it is written, ORG/REPO@REVISION:SUBFOLDER; or a manifest's. Of a sub-folder nothing else is
        fetched.

    Raises
    ------
    CheckpointError : the disk is too small, which is looked at before anything is fetched; the repository
        cannot be had, has no such revision or sub-folder, has no safetensors weights, or holds a file that is
        not the one that is listed.
    """
    if not isinstance(source, Address):
        source = parse_address(source) if isinstance(source, str) else address_of(source)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else None
    offline = offline or is_offline_mode()
    # What a command asked for before stands without network too.
    ask = known_commit if offline else partial(commit_of, endpoint=endpoint)
    commit = ask(source.repo, source.revision)
    source = source.at(commit) if commit else source
    folder = _in_cache(source, cache, offline) or _downloaded(source, cache, endpoint)
    inside = folder / source.subfolder
    named = named_by_index(inside)
    if not any(path for pattern in (*WEIGHTS, *named) for path in inside.glob(pattern)):
        raise no_weights(source.told, _names(source, folder.name, offline, endpoint))
    _check_content(folder, _below(source, (*PATTERNS, *named)))
    if not offline:
        _remember(source, cache)
    return Snapshot(inside, folder.name)


def _below(source: Address, patterns: Sequence[str]) -> tuple[str, ...]:
    """Patterns of names in a checkpoint's folder as patterns of names in its repository."""
    prefix = f"{escape(source.subfolder)}/" if source.subfolder else ""
    return tuple(prefix + pattern for pattern in patterns)


def _in_cache(source: Address, cache: Path | None, offline: bool) -> Path | None:
    """The snapshot if all of it is in the cache; without network a branch or tag is what it was at last."""
    patterns = _below(source, PATTERNS)
    if offline:
        return _client(source, cache, patterns, local_files_only=True)
    try:
        # Without the commit's listing the client cannot tell a whole snapshot from a part of one.
        get_cached_repo_tree(source.repo, revision=source.revision, cache_dir=cache)
        folder = _client(source, cache, patterns, local_files_only=True)
    except (CachedRepoTreeNotFoundError, CheckpointError):
        return None
    inside = folder / source.subfolder
    return folder if all((inside / name).is_file() for name in named_by_index(inside)) else None


def _downloaded(source: Address, cache: Path | None, endpoint: str | None) -> Path:
    """The snapshot at a commit, with all that the checkpoint in it needs."""
    repository = listed(source.repo, str(source.revision), endpoint)
    check_subfolder(source, repository.files)
    storage = storage_of(source.repo, cache)
    # First small files: the client keeps the listing with them, and so knows a snapshot that is not whole.
    first = _below(source, _FIRST)
    folder = _client(source, cache, first, endpoint=endpoint)
    _check_content(folder, first)
    patterns = _below(source, (*PATTERNS, *named_by_index(folder / source.subfolder)))
    wanted = [file for name, file in repository.files.items() if any(fnmatch(name, p) for p in patterns)]
    _refuse_quantised(folder / source.subfolder, wanted)
    large = [file for file in wanted if file.sha256]
    download(large, storage)
    for file in large:
        link(file, storage)
    return _client(source, cache, patterns, endpoint=endpoint)


def _remember(source: Address, cache: Path | None) -> None:
    """Keep what a branch or tag stood for, where the client looks for it when there is no network."""
    path = storage_of(source.repo, cache) / "refs" / source.named
    if source.named and not (path.is_file() and path.read_text() == source.revision):
        write_text(path, str(source.revision))


def named_by_index(folder: Path) -> tuple[str, ...]:
    """The files that hold tensors by a folder's index, whatever their names; opening checks the index."""
    path = folder / INDEX
    # Names become patterns of the client's: what it would take for another one is left to fail as missing.
    named = index_files(path.read_bytes()) if path.is_file() else ()
    return tuple(file for file in named if not set(file) & set("*?["))


def _refuse_quantised(folder: Path, wanted: Iterable[RemoteFile]) -> None:
    """Refuse a model of codes before they are fetched; headers are asked for only if config.json says so."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    if config.get("quantization_config"):
        files = [file for file in wanted if file.name.endswith(".safetensors")]
        refuse_quantised(path, config, [info for file in files for info in remote_header(file).values()])


def _client(source: Address, cache: Path | None, patterns: Sequence[str], **settings: Any) -> Path:
    settings |= {"revision": source.revision, "cache_dir": cache, "allow_patterns": list(patterns)}
    try:
        return Path(snapshot_download(source.repo, tqdm_class=_Silent, **settings))
    except Exception as error:
        # The client lets its HTTP library's errors through, and that library changes between versions.
        raise hub_error(source.repo, source.told, error) from None


class _Silent(tqdm):
    """No bar: what takes long has one of ours."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings | {"disable": True})


def _check_content(folder: Path, patterns: Sequence[str] = PATTERNS) -> None:
    """Check files of a snapshot against their blobs' names, which are the digests that the Hub lists."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and any(fnmatch(name, pattern) for pattern in patterns):
            expected = Path(os.readlink(path)).name
            kind, digest = ("sha256", sha256_of) if len(expected) == 64 else ("git's sha1", _git_sha1_of)
            if len(expected) in (40, 64) and (found := digest(path)) != expected:
                raise _other_file(path, name, "the Hub", f"{kind} {expected}", f"{kind} {found}")


def _git_sha1_of(path: Path) -> str:
    return git_sha1(path.read_bytes())


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check each listed file's sha256; the first that is missing or differs raises CheckpointError."""
    for name, expected in sorted(files.items()):
        path = folder / name
        found = f"sha256 {sha256_of(path)}" if path.is_file() else "no such file"
        if found != f"sha256 {expected}":
            raise _other_file(path, name, "the manifest", f"sha256 {expected}", found)


def _other_file(path: Path, name: str, who: str, expected: str, found: str) -> CheckpointError:
    # In the Hub's cache the snapshot holds a link; unless its target goes too, it is taken again.
    doomed = " and ".join(dict.fromkeys([str(path), str(path.resolve())]))
    return CheckpointError(
        f"{name} is not the file that {who} lists",
        where=path,
        expected=expected,
        found=found,
        remedy=f"delete {doomed} and run again; if it happens twice, the manifest is wrong"
        " or the repository was changed",
    )


def open_entry(
    manifest: Manifest,
    entry: Entry,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    ranged: bool = False,
) -> Checkpoint:
    """Open a manifest's checkpoint, wherever it is; one from the Hub knows its commit.

    ranged : read one of the Hub tensor by tensor, and download no file of it.
    """
    if isinstance(entry.source, Folder):
        folder = entry.folder(manifest)
        checkpoint = Checkpoint.open(folder)
        verify_files(folder, entry.files)
        return checkpoint
    if ranged:
        return _opened_ranged(address_of(entry.source), entry.files, offline, endpoint)
    snapshot = resolve(entry, cache_dir, offline, endpoint)
    return replace(Checkpoint.open(snapshot.folder), revision=snapshot.revision)


def open_named(
    text: str | Address,
    cache_dir: str | os.PathLike | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    ranged: bool = False,
) -> Checkpoint:
    """Open what a user typed: a folder if there is one of that name, else ORG/REPO@REVISION:SUBFOLDER.

    Revision and sub-folder may be left out; a branch or tag is resolved to a commit, which the checkpoint
    knows.

    ranged : read a repository tensor by tensor, and download no file of it.
    """
    if isinstance(text, str) and Path(text).is_dir():
        return Checkpoint.open(text)
    source = parse_address(text) if isinstance(text, str) else text
    if ranged:
        return _opened_ranged(source, {}, offline, endpoint)
    snapshot = fetch(source, cache_dir, offline, endpoint)
    return replace(Checkpoint.open(snapshot.folder), revision=snapshot.revision)


def _opened_ranged(
    source: Address, files: Mapping[str, str], offline: bool, endpoint: str | None
) -> RangedCheckpoint:
    """A checkpoint read by ranges, of whose files the Hub lists the sha256 that the manifest lists."""
    checkpoint = open_ranged(
        source.repo, source.revision, subfolder=source.subfolder, endpoint=endpoint, offline=offline
    )
    for name, expected in sorted(files.items()):
        found = checkpoint.sha256.get(name)
        if found != expected and (found is not None or name.endswith(".safetensors")):
            raise CheckpointError(
                f"{name} of the Hub is not the file that the manifest lists",
                where=checkpoint.folder / name,
                expected=f"sha256 {expected}",
                found=f"sha256 {found}" if found else "no such file with tensors",
                remedy="correct revision and files in the manifest: they are not of one commit",
            )
    return checkpoint


def _names(source: Address, revision: str, offline: bool, endpoint: str | None) -> list[str]:
    """Files of a repository; none where the Hub does not tell, for they only make a message better."""
    try:
        names = [] if offline else HfApi(endpoint=endpoint).list_repo_files(source.repo, revision=revision)
    except Exception:
        return []
    return [name for name in names if name.startswith(source.subfolder)]


def no_weights(where: object, names: Iterable[str]) -> CheckpointError:
    """The error for a repository of these files, none of which holds a whole model as safetensors."""
    heavy = sorted(name for name in names if _HEAVY.search(name))
    return CheckpointError(
        "the Hub repository has no safetensors weights of a whole model",
        where=where,
        expected=" or ".join(WEIGHTS),
        found=", ".join(heavy[:5]) or "none of them",
        remedy="pickle and quantised files are not read, and an adapter is a tuned side, on its base: "
        "take another upload of this model",
    )
