"""What the Hub says of a repository without its weights: commit, licence, files with sha256, stored dtype."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import (
    build_hf_headers,
    filter_repo_objects,
    get_session,
    hf_raise_for_status,
    http_backoff,
    validate_repo_id,
)

from threegates.checkpoints.headers import LARGEST_HEADER
from threegates.checkpoints.hub import PATTERNS
from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.transfer import REMEDIES
from threegates.errors import CheckpointError

# How often to ask again, with pauses, after too many requests or a connection that broke.
_RETRIES = 3
_SECONDS = 30.0
#: Most bytes of a file without a sha256 of the Hub's; those are small texts.
LARGEST_TEXT = 64 << 20
# The manifest's names of what safetensors calls these.
_NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
_HEAVY = re.compile(r"\.(safetensors|bin|pt|pth|gguf|h5|msgpack)$")

_T = TypeVar("_T")


class HubUnreachableError(CheckpointError):
    """No Hub answers, so that asking it for anything else is of no use."""


@dataclass(frozen=True)
class Card:
    """What the Hub says of a repository: the commit a revision stands for, and what its card states."""

    repo: str
    commit: str
    gated: bool = False
    licence: str | None = None


@dataclass(frozen=True)
class ListedFile:
    """A file as the Hub lists it; only large ones have a `sha256`, `blob` is git's id of the others."""

    name: str
    size: int
    blob: str
    sha256: str | None


def read_card(repo: str, revision: str | None = None, endpoint: str | None = None) -> Card:
    """Ask the Hub which commit a revision (a branch, tag or commit; else the newest) is, and for its card.

    Raises
    ------
    HubUnreachableError : nobody answers.
    CheckpointError : there is no such repository or revision, or it is gated; with what to do.
    """
    asked = f"/revision/{quote(revision, safe='')}" if revision else ""
    told = _asked(repo, lambda: _get(_api(repo, endpoint) + asked).json())
    commit = told.get("sha") if isinstance(told, dict) else None
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise CheckpointError(
            f"the Hub does not say which commit {repo} is at",
            where=repo,
            expected="40 hexadecimal digits",
            found=repr(commit)[:100],
            remedy="check HF_ENDPOINT, or try again later",
        )
    card = told.get("cardData")
    card = card if isinstance(card, dict) else {}
    return Card(repo, commit, bool(told.get("gated")), _licence(card))


def list_files(repo: str, commit: str, endpoint: str | None = None) -> dict[str, ListedFile]:
    """Every file of a repository at a commit, by name.

    Raises
    ------
    CheckpointError : the list cannot be had, or a name in it leads out of the folder.
    """
    items = _asked(repo, lambda: _pages(f"{_api(repo, endpoint)}/tree/{commit}"))
    listed = [_listed(repo, item) for item in items]
    return {file.name: file for file in listed if file is not None}


def model_files(repo: str, files: Mapping[str, ListedFile]) -> dict[str, ListedFile]:
    """Those files that belong to the model: weights, config, tokenizer.

    Raises
    ------
    CheckpointError : there are no safetensors weights of a whole model among them.
    """
    kept = sorted(filter_repo_objects(files, allow_patterns=list(PATTERNS)))
    if not any(name.endswith(".safetensors") for name in kept):
        heavy = [name for name in sorted(files) if _HEAVY.search(name)]
        raise CheckpointError(
            f"the Hub repository {repo} has no safetensors weights of a whole model",
            where=repo,
            expected="model.safetensors, or shards model-*.safetensors",
            found=", ".join(heavy[:5]) or "none of them",
            remedy="pickle and quantised files are not read, adapters must be merged first: "
            "take another upload of this model",
        )
    return {name: files[name] for name in kept}


def listed_sha256(repo: str, commit: str, file: ListedFile, endpoint: str | None = None) -> str:
    """sha256 of a file at a commit: the Hub's own of a large file, else that of the file itself.

    A file that is fetched is held against git's id of it, or against the tag that it is served with, so that
    what was damaged on its way is never locked.
    """
    if file.sha256 is not None:
        return file.sha256
    if file.size > LARGEST_TEXT:
        raise CheckpointError(
            f"the Hub lists no sha256 of {file.name}",
            where=f"{repo}, {file.name}",
            expected=f"one, or a file of at most {LARGEST_TEXT} bytes to take it of",
            found=f"{file.size} bytes",
            remedy="take another upload of this model",
        )
    address = hf_hub_url(repo, file.name, revision=commit, endpoint=endpoint)
    for _ in range(_RETRIES):
        response = _asked(repo, lambda: _get(address))
        content = response.content
        found = hashlib.sha256(content).hexdigest()
        tags = {file.blob, response.headers.get("etag", "").removeprefix("W/").strip('"')}
        if len(content) == file.size and tags & {found, _blob(content)}:
            return found
    raise CheckpointError(
        f"{file.name} arrives damaged",
        where=f"{repo}, {file.name}",
        expected=f"{file.size} bytes of the blob {file.blob}",
        found=f"{len(content)} bytes of the blob {_blob(content)}",
        remedy="check the network (a proxy may change files), then run again",
    )


def stored_dtypes(
    repo: str, commit: str, files: Iterable[str], endpoint: str | None = None
) -> tuple[str, ...]:
    """In which dtypes the tensors of a model's files are stored, most values first: bf16, fp16, fp32, …

    Reads headers alone, by ranges.

    Raises
    ------
    CheckpointError : a header cannot be read, or the server sends whole files in place of ranges.
    """
    held: dict[str, int] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            address = hf_hub_url(repo, name, revision=commit, endpoint=endpoint)
            for dtype, size in _sizes(f"{repo}, {name}", _header(repo, name, address)):
                held[dtype] = held.get(dtype, 0) + size
    return tuple(sorted(held, key=lambda dtype: (-held[dtype], dtype)))


def _header(repo: str, name: str, address: str) -> bytes:
    length = int.from_bytes(_asked(repo, lambda: _range(address, 0, 7)), "little")
    if not 2 <= length <= LARGEST_HEADER:
        raise CheckpointError(
            f"{name} has no readable safetensors header",
            where=f"{repo}, {name}",
            expected=f"a header length from 2 to {LARGEST_HEADER} bytes",
            found=f"{length} bytes",
            remedy="the file is damaged: take another upload of this model",
        )
    return _asked(repo, lambda: _range(address, 8, 7 + length))


def _sizes(where: str, header: bytes) -> list[tuple[str, int]]:
    """Dtype and number of stored bytes of each tensor."""
    try:
        tensors = {name: told for name, told in json.loads(header).items() if name != "__metadata__"}
        spans = [(str(told["dtype"]), told["data_offsets"]) for told in tensors.values()]
        return [(_NAMES.get(dtype, dtype.lower()), int(end) - int(start)) for dtype, (start, end) in spans]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            "a safetensors header does not list tensors",
            where=where,
            expected="dtype and data_offsets of each",
            found=f"{type(error).__name__}: {error}"[:200],
            remedy="the file is damaged: take another upload of this model",
        ) from None


def _range(address: str, first: int, last: int) -> bytes:
    """Bytes of a file. The status is looked at before the body: a server without ranges sends it all."""
    wanted = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    headers = {**build_hf_headers(), **wanted}
    for attempt in range(_RETRIES + 1):
        try:
            with get_session().stream("GET", address, headers=headers, timeout=_SECONDS) as response:
                hf_raise_for_status(response)
                if response.status_code != 206:
                    raise _no_range(address, response.status_code)
                content = b"".join(response.iter_bytes())
            if len(content) == last - first + 1:
                return content
        except CheckpointError:
            raise
        except HfHubHTTPError as error:
            if attempt == _RETRIES or error.response.status_code not in (408, 429, 500, 502, 503, 504):
                raise
        except Exception:
            # The HTTP library's errors: a connection that broke is worth another try.
            if attempt == _RETRIES:
                raise
        time.sleep(2.0**attempt)
    raise CheckpointError(
        "the Hub sends fewer bytes than it was asked for",
        where=_plain_address(address),
        expected=f"bytes {first} to {last}",
        remedy="check the network, then run again",
    )


def _no_range(address: str, status: int) -> CheckpointError:
    return CheckpointError(
        "the server sends whole files where a range was asked for",
        where=_plain_address(address),
        expected="status 206",
        found=f"status {status}",
        remedy="ask the Hub itself, not a mirror: unset HF_ENDPOINT",
    )


def _api(repo: str, endpoint: str | None) -> str:
    validate_repo_id(repo)
    return f"{(endpoint or constants.ENDPOINT).rstrip('/')}/api/models/{repo}"


def _get(address: str, params: Mapping[str, str] | None = None) -> Any:
    response = http_backoff(
        "GET",
        address,
        params=dict(params or {}),
        headers=build_hf_headers(),
        timeout=_SECONDS,
        max_retries=_RETRIES,
    )
    hf_raise_for_status(response)
    return response


def _pages(address: str) -> list[Any]:
    """All pages of a list. Of the next page's address only the question is taken: its host may be any."""
    params: dict[str, str] | None = {"recursive": "true"}
    items: list[Any] = []
    while params is not None:
        response = _get(address, params)
        items += response.json()
        following = response.links.get("next", {}).get("url")
        params = dict(parse_qsl(urlsplit(following).query)) if following else None
    return items


def _asked(repo: str, ask: Callable[[], _T]) -> _T:
    """What the Hub answers; its refusals become errors that say what to do."""
    try:
        return ask()
    except CheckpointError:
        raise
    except Exception as error:
        # The client lets its HTTP library's errors through, and that library changes between versions.
        raise _refused(repo, error) from error


def _refused(repo: str, error: Exception) -> CheckpointError:
    answered = isinstance(error, HfHubHTTPError | ValueError)
    known = (remedy for kind, remedy in REMEDIES if isinstance(error, kind))
    # Addresses of a file's store carry signatures behind the question mark.
    found = " ".join(_plain_address(word) for word in str(error).split())[:300]
    return (CheckpointError if answered else HubUnreachableError)(
        f"the Hub cannot be asked about {repo}",
        where=repo,
        found=f"{type(error).__name__}: {found}",
        remedy=next(known, "try again later" if answered else "check the network and HF_ENDPOINT"),
    )


def _plain_address(text: str) -> str:
    return re.sub(r"(https?://)(?:[^/@\s]*@)?([^?\s]*)\?\S*", r"\1\2", text)


def _listed(repo: str, item: Any) -> ListedFile | None:
    try:
        if item["type"] != "file":
            return None
        large = item.get("lfs") or {}
        file = ListedFile(str(item["path"]), int(item["size"]), str(item["oid"]), large.get("oid"))
    except (KeyError, TypeError, ValueError, AttributeError):
        file = ListedFile("", 0, "", None)
    whole = file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", str(file.sha256))
    if stays_inside(file.name) and file.name.isprintable() and whole:
        return file
    raise CheckpointError(
        f"the list of files of {repo} is not one that can be trusted",
        where=repo,
        expected="relative names, sizes and a sha256 of each large file",
        found=json.dumps(item)[:200],
        remedy="check HF_ENDPOINT",
    )


def _licence(card: Mapping[str, Any]) -> str | None:
    """The licence as the manifest writes it; a card says "other" where its own name stands beside."""
    told = card.get("license")
    told = card.get("license_name") if told == "other" else told
    return told if isinstance(told, str) and re.fullmatch(r"[\w.+ -]{1,80}", told) else None


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
