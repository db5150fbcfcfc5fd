"""What locking asks the Hub: a repository's commit and card, its files' sha256, its tensors' dtypes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, get_session
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, filter_repo_objects, hf_raise_for_status, validate_repo_id

from threegates.checkpoints.beside import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.hub.addresses import Address
from threegates.checkpoints.hub.ranged import weight_files
from threegates.checkpoints.hub.remote_headers import remote_header
from threegates.checkpoints.hub.repository import COMMIT, TIMEOUT, listed, unknown_revision
from threegates.checkpoints.hub.snapshots import PATTERNS, no_weights
from threegates.checkpoints.hub.subfolders import check_subfolder
from threegates.checkpoints.hub.transfer import REVISION, TRANSIENT, RemoteFile, ask, git_sha1, read_whole
from threegates.checkpoints.tensors import INDEX
from threegates.errors import CheckpointError

#: Most bytes of a file without a sha256 of the Hub's; those are small texts.
LARGEST_TEXT = 64 << 20
# How often a small file is taken that arrives damaged.
_TRIES = 3
# The manifest's names of what safetensors calls these.
_NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}


class HubUnreachableError(CheckpointError):
    """No Hub answers, so that asking it for anything else is of no use."""


@dataclass(frozen=True)
class Card:
    """What the Hub says of a repository: the commit a revision stands for, and what its card states."""

    repo: str
    commit: str
    gated: bool = False
    licence: str | None = None


def read_card(repo: str, revision: str | None = None, endpoint: str | None = None) -> Card:
    """Ask the Hub which commit a revision (a branch, tag or commit; else the newest) is, and for its card.

    Raises
    ------
    HubUnreachableError : nobody answers.
    CheckpointError : there is no such repository or revision, or it is gated; with what to do.
    """
    told = _told(repo, revision, endpoint)
    commit = told.get("sha") if isinstance(told, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise CheckpointError(
            f"the Hub does not say which commit {repo} is at",
            where=repo,
            expected="40 hexadecimal digits",
            found=repr(commit)[:100],
            remedy="check HF_ENDPOINT, or try again later",
        )
    card = told.get("cardData")
    return Card(repo, commit, bool(told.get("gated")), _licence(card if isinstance(card, dict) else {}))


def model_files(
    repo: str,
    commit: str,
    endpoint: str | None = None,
    subfolder: str = "",
    known: Collection[str] = (),
) -> dict[str, RemoteFile]:
    """The files of a commit that belong to the model, by name: weights, config, tokenizer.

    Weights are the files that the index names, whatever their names; the index is read for it, unless their
    names are among those that are known, as of a commit that is looked at again. Of a sub-folder the names
    are those in there.

    Raises
    ------
    CheckpointError : the list cannot be had or trusted, has no such sub-folder, or has no safetensors weights
        of a whole model; or the index arrives damaged.
    """
    try:
        repository = listed(repo, commit, endpoint)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _no_list(repo, commit, f"{type(error).__name__}: {error}") from None
    address = Address(repo, commit, subfolder)
    check_subfolder(address, repository.files)
    files = repository.below(subfolder)
    weights = _weights(files, known)
    others = set(filter_repo_objects(files, allow_patterns=list(PATTERNS)))
    if strange := [name for name in sorted({*weights, *others}) if not name.isprintable()]:
        raise _no_list(repo, commit, repr(strange[0]))
    if not weights:
        raise no_weights(repository, repository.files)
    kept = sorted({*weights, *(name for name in others if not name.endswith(".safetensors"))})
    return {name: files[name] for name in kept}


def _weights(files: Mapping[str, RemoteFile], known: Collection[str]) -> list[str]:
    if known:
        return [name for name in known if name in files and name.endswith(".safetensors")]
    found = weight_files(files, read_checked(files[INDEX]) if INDEX in files else None)
    # An adapter is one only where no model's weights lie beside it, as in a folder.
    adapter = [ADAPTER_WEIGHTS] if ADAPTER_CONFIG in files and ADAPTER_WEIGHTS in files else []
    return found or adapter


def listed_sha256(file: RemoteFile) -> str:
    """sha256 of a file: the Hub's own for a large file; a small file is fetched and hashed.

    A file that is fetched is held against git's id of it: what was damaged on its way is never locked.

    Raises
    ------
    CheckpointError : it cannot be had, arrives damaged each time, or is too large to be taken.
    """
    if file.sha256 is not None:
        return file.sha256
    if file.size > LARGEST_TEXT:
        raise CheckpointError(
            f"the Hub lists no sha256 of {file.name}",
            where=file,
            expected=f"one, or a file of at most {LARGEST_TEXT} bytes to take it of",
            found=f"{file.size} bytes",
            remedy="take another upload of this model",
        )
    return hashlib.sha256(read_checked(file)).hexdigest()


def read_checked(file: RemoteFile) -> bytes:
    """All of a small file, of the content that the Hub lists; one that arrives damaged is taken again.

    Raises
    ------
    CheckpointError : it cannot be had, or arrives damaged each time.
    """
    digest = git_sha1 if file.sha256 is None else lambda content: hashlib.sha256(content).hexdigest()
    for _ in range(_TRIES):
        content = read_whole(file)
        found = digest(content)
        if found == file.blob:
            return content
    raise CheckpointError(
        f"{file.name} arrives damaged",
        where=file,
        expected=f"{_kind(file)} {file.blob}",
        found=f"{_kind(file)} {found}",
        remedy="check the network (a proxy may change files), then run again",
    )


def _kind(file: RemoteFile) -> str:
    return "git's sha1" if file.sha256 is None else "sha256"


def stored_dtypes(files: Mapping[str, RemoteFile]) -> tuple[str, ...]:
    """In which dtypes the tensors of a model's files are stored, most bytes first: bf16, fp16, fp32, …

    Reads headers alone, by ranges.

    Raises
    ------
    CheckpointError : a header cannot be read, or the server sends whole files in place of ranges.
    """
    shards = [files[name] for name in sorted(files) if name.endswith(".safetensors")]
    return dtypes_of(info for shard in shards for info in remote_header(shard).values())


def dtypes_of(infos: Iterable[TensorInfo]) -> tuple[str, ...]:
    """In which dtypes tensors are stored, as manifests call them, most bytes first."""
    held: dict[str, int] = {}
    for info in infos:
        dtype = _NAMES.get(info.dtype, info.dtype.lower())
        held[dtype] = held.get(dtype, 0) + info.offsets[1] - info.offsets[0]
    return tuple(sorted(held, key=lambda dtype: (-held[dtype], dtype)))


def _told(repo: str, revision: str | None, endpoint: str | None) -> Any:
    """The API's answer about a repository; where the network is at fault, the error says so by its kind."""
    last: list[Exception] = []

    def question() -> Any:
        try:
            validate_repo_id(repo)
            asked = f"/revision/{quote(revision, safe='')}" if revision else ""
            address = f"{(endpoint or constants.ENDPOINT).rstrip('/')}/api/models/{repo}{asked}"
            headers = build_hf_headers(library_name="threegates")
            answer = get_session().get(address, headers=headers, timeout=TIMEOUT)
            hf_raise_for_status(answer)
            return answer.json()
        except Exception as error:
            last[:] = [error]
            raise

    try:
        return ask(f"{repo} at {revision or 'its newest commit'}", repo, question)
    except CheckpointError as error:
        if last and isinstance(last[0], (*TRANSIENT, OfflineModeIsEnabled)):
            raise HubUnreachableError(
                f"the Hub cannot be asked about {repo}",
                where=repo,
                found=error.found,
                remedy="check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then run again",
            ) from None
        raise unknown_revision(repo, revision, endpoint) if error.remedy == REVISION else error from None


def _no_list(repo: str, commit: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"the list of files of {repo} is not one that can be trusted",
        where=f"{repo}@{commit}",
        expected="a plain name, a size and a digest of each file",
        found=found[:200],
        remedy="check HF_ENDPOINT; if it is the Hub's own, do not use this repository",
    )


def _licence(card: Mapping[str, Any]) -> str | None:
    """The card's licence; where it says "other", the licence's own name stands beside."""
    told = card.get("license")
    told = card.get("license_name") if told == "other" else told
    return told if isinstance(told, str) and re.fullmatch(r"[\w.+ -]{1,80}", told) else None
