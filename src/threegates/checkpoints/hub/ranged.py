"""A checkpoint of the Hub read by ranges: headers first, then one tensor at a time, never a whole file.

What is refused of a folder is refused here by the same code: headers are laid out as files of the right size
that hold nothing behind them, and opened as a folder is. Only the bytes of tensors come from elsewhere.

A range cannot be checked against the sha256 of the file that it is a part of. Its own sha256 is kept, and a
range that is read again has to have the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import is_offline_mode
from torch import Tensor

from threegates.checkpoints.beside import ADAPTER_CONFIG, whole_shards
from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.hub.addresses import Address
from threegates.checkpoints.hub.range_cache import RangeCache
from threegates.checkpoints.hub.remote_headers import header_bytes, lay_out, renamed
from threegates.checkpoints.hub.repository import COMMIT, Repository, commit_of, listed
from threegates.checkpoints.hub.subfolders import check_subfolder
from threegates.checkpoints.hub.transfer import RemoteFile, git_sha1, read_range, read_whole
from threegates.checkpoints.paths import stays_inside
from threegates.checkpoints.quantised import refuse_quantised
from threegates.checkpoints.tensors import DTYPES, INDEX, REFUSED, SINGLE, Checkpoint
from threegates.errors import CheckpointError

CONFIG = "config.json"
LISTING = "listing.json"
# A config or index with more bytes than this cannot be one: it is refused unread.
LARGEST_SMALL = 100_000_000
_HEADER = ".header"
# What a folder is told apart by, without a look inside.
_NAMED = (*REFUSED, "*.safetensors", ADAPTER_CONFIG)


@dataclass(frozen=True)
class RangedCheckpoint(Checkpoint):
    """A checkpoint whose tensors come over the network, each by one request for its range of bytes.

    `folder` is no folder but ORG/REPO@COMMIT, with :SUBFOLDER where it lies in one, and `infos` name files
    below it. `remote` holds config.json and the files with tensors, `sha256` theirs. Without network
    (`offline`) it gives what the cache holds.
    """

    remote: Mapping[str, RemoteFile] = field(kw_only=True)
    sha256: Mapping[str, str] = field(kw_only=True)
    cache: RangeCache = field(kw_only=True)
    offline: bool = field(default=False, kw_only=True)
    subfolder: str = field(default="", kw_only=True)

    @property
    def repo(self) -> str:
        """ORG/REPO."""
        return next(iter(self.remote.values())).repo

    def stored(self, name: str) -> Tensor:
        """A tensor as stored: from the cache, or by one request for its range.

        Raises
        ------
        CheckpointError : there is no such tensor, it is of a type that is not read, it cannot be had, or it
            has other bytes than the last time.
        """
        info = self.info(name)
        return self._values(info, info.offsets, info.shape)

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, shape (stop − start, …), by a request for their range alone.

        Raises
        ------
        CheckpointError : as `stored`; or the tensor has no such rows.
        """
        info = self.info(name)
        rows = info.shape[0] if info.shape else 0
        if not 0 <= start <= stop <= rows:
            raise CheckpointError(
                f"tensor '{name}' has no such rows",
                where=f"{info.file}, tensor '{name}'",
                expected=f"0 ≤ start ≤ stop ≤ {rows}",
                found=f"rows {start} to {stop} of shape {list(info.shape)}",
            )
        first, last = info.offsets
        row = (last - first) // rows if rows else 0
        whole = self._key(info, info.offsets)
        if self.cache.holds(whole):
            return self.stored(name)[start:stop]
        offsets = (first + start * row, first + stop * row)
        return self._values(info, offsets, (stop - start, *info.shape[1:]))

    def tensor_sha256(self, name: str) -> str | None:
        """sha256 over a tensor's bytes when it was last read here, None if it never was."""
        info = self.info(name)
        return self.cache.digest(self._key(info, info.offsets))

    def is_cached(self, name: str) -> bool:
        """Whether a tensor's bytes lie in the cache."""
        info = self.info(name)
        return self.cache.holds(self._key(info, info.offsets))

    def files(self) -> list[Path]:
        """config.json and the files that hold tensors, as paths below ORG/REPO@COMMIT, sorted by name."""
        return sorted(self.folder / name for name in self.sha256)

    def digest(self) -> str:
        """sha256 over names and sha256 of config.json and tensor files: the downloaded folder's digest."""
        total = hashlib.sha256()
        for file in self.files():
            name = file.relative_to(self.folder).as_posix()
            total.update(f"{name} {self.sha256[name]}\n".encode())
        return total.hexdigest()

    def _values(self, info: TensorInfo, offsets: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
        dtype = DTYPES.get(info.dtype)
        if dtype is None:
            raise _unreadable(info)
        first, last = offsets
        content = self.cache.content(
            self._key(info, offsets), last - first, lambda: self._chunks(info, first, last)
        )
        return content.view(dtype).reshape(shape)

    def _remote_of(self, info: TensorInfo) -> RemoteFile:
        return self.remote[info.file.relative_to(self.folder).as_posix()]

    def _key(self, info: TensorInfo, offsets: tuple[int, int]) -> str:
        return f"{self._remote_of(info).blob}-{offsets[0]}-{offsets[1]}"

    def _chunks(self, info: TensorInfo, first: int, last: int) -> Iterator[bytes]:
        if self.offline:
            raise CheckpointError(
                f"tensor '{info.name}' is not in the cache, and the network is switched off",
                where=f"{info.file}, tensor '{info.name}'",
                expected=f"{last - first} bytes in the cache of ranges",
                found="none, or damaged ones",
                remedy="run once with the network on; THREEGATES_RANGES_GIB bounds how much stays",
            )
        return read_range(self._remote_of(info), first, last)


def open_ranged(
    repo: str,
    revision: str | None = None,
    *,
    subfolder: str = "",
    endpoint: str | None = None,
    cache: RangeCache | str | os.PathLike | None = None,
    offline: bool = False,
    dequantise: bool = False,
) -> RangedCheckpoint:
    """Open ORG/REPO at a commit by its config and headers; the second time at a commit without a request.

    revision : 40 digits, a branch or tag, or None for the newest commit.
    subfolder : the folder of the repository that the checkpoint lies in.
    endpoint : address of the Hub, where it is not HF_ENDPOINT's.
    cache : what keeps ranges, or its folder; None takes the one that the environment names.
    offline : make no request, as HF_HUB_OFFLINE=1 does.
    dequantise : whether what is quantised is opened too, for its codes to be read as floats.

    Raises
    ------
    CheckpointError : repository, revision or sub-folder is not there, has no readable weights (adapters,
        quantised, GGUF and pickle files among them), is damaged or unsafe; or something is missing and the
        network is off.
    """
    if not isinstance(cache, RangeCache):
        cache = RangeCache.named() if cache is None else RangeCache(Path(cache), RangeCache.named().limit)
    offline = offline or is_offline_mode()
    if offline and not COMMIT.fullmatch(revision or ""):
        raise _no_commit(repo, revision, cache)
    address = Address(repo, commit_of(repo, revision, endpoint), subfolder)
    known = _Known(cache, address, offline, endpoint)
    with TemporaryDirectory(prefix="threegates-") as temporary:
        skeleton = Path(temporary)
        try:
            _lay_out(skeleton, known)
            opened = Checkpoint.open(skeleton)
            if not dequantise:
                refuse_quantised(skeleton, opened.config, opened.infos.values())
        except CheckpointError as error:
            raise renamed(error, str(skeleton), str(known.folder)) from None
    return _ranged(opened, skeleton, known)


def _ranged(opened: Checkpoint, skeleton: Path, known: _Known) -> RangedCheckpoint:
    names = [file.relative_to(skeleton).as_posix() for file in opened.files()]
    sha256 = {name: known.sha256(name) for name in names}
    known.keep()
    return RangedCheckpoint(
        known.folder,
        opened.config,
        {
            name: replace(info, file=known.folder / info.file.relative_to(skeleton))
            for name, info in opened.infos.items()
        },
        known.address.revision,
        remote={name: known.files[name] for name in names},
        sha256=sha256,
        cache=known.cache,
        offline=known.offline,
        subfolder=known.address.subfolder,
        notes=opened.notes,
    )


class _Known:
    """What is known of a checkpoint at a commit besides its tensors; kept once it has proved to be whole.

    `files` are those of its folder by their names in there. What is kept has the names of the repository, so
    that all its folders share one listing.
    """

    def __init__(self, cache: RangeCache, address: Address, offline: bool, endpoint: str | None) -> None:
        self.cache, self.address = cache, address
        self.offline, self.endpoint = offline, endpoint
        self.folder = Path(str(address))
        self._fresh: dict[str, bytes] = {}
        repo, commit = address.repo, str(address.revision)
        text = self._get(LISTING, lambda: listed(repo, commit, endpoint).text().encode())
        repository = Repository.parse(text, endpoint)
        check_subfolder(address, repository.files)
        self.files = repository.below(address.subfolder)

    def whole(self, name: str) -> bytes:
        """All of a small file, of the content that the Hub lists."""
        file = self.files[name]
        return self._get(file.name, lambda: _checked(file))

    def header(self, name: str) -> bytes:
        """The beginning of a file of tensors, up to the end of its header."""
        file = self.files[name]
        return self._get(file.name + _HEADER, lambda: header_bytes(file))

    def sha256(self, name: str) -> str:
        """sha256 of a file; of one that git holds and the Hub does not tell, by reading it."""
        file = self.files[name]
        if name == CONFIG:
            return hashlib.sha256(self.whole(name)).hexdigest()
        told = file.sha256
        return told or self._get(file.name + ".sha256", lambda: _sha256_of(file).encode()).decode()

    def keep(self) -> None:
        """Keep what was fetched."""
        for name, content in self._fresh.items():
            self.cache.keep_small(self._place(name), content)

    def _place(self, name: str) -> str:
        # A repository's names may hold slashes. The small files of one commit are kept in one flat folder.
        repo, flat = self.address.repo.replace("/", "--"), name.replace("%", "%25").replace("/", "%2F")
        return f"{repo}/{self.address.revision}/{flat}"

    def _get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        found = self._fresh.get(name)
        if found is None:
            found = self.cache.small(self._place(name))
        if found is None:
            if self.offline:
                raise _missing(self.folder, name)
            found = self._fresh[name] = fetch()
        return found


def _lay_out(skeleton: Path, known: _Known) -> None:
    """Config, index and headers as a folder: every file has its size, and none holds a tensor."""
    files = known.files
    # Empty, for their names alone say why a repository without safetensors is refused, or what is not read.
    for name in files:
        if name.count("/") < 2 and any(Path(name).match(pattern) for pattern in _NAMED):
            (skeleton / name).parent.mkdir(exist_ok=True)
            (skeleton / name).touch()
    for name in (CONFIG, INDEX):
        if name in files:
            (skeleton / name).write_bytes(known.whole(name))
    for name in _shards(skeleton, files):
        path = skeleton / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lay_out(path, known.header(name), files[name].size)


def _shards(skeleton: Path, files: Mapping[str, RemoteFile]) -> list[str]:
    """Names of the listed files that hold tensors; opening finds what is wrong with the index."""
    return weight_files(files, (skeleton / INDEX).read_bytes() if INDEX in files else None)


def weight_files(names: Iterable[str], index: bytes | None) -> list[str]:
    """Which of a folder's files hold the model's tensors: those that its index names, whatever their names.

    Where the index has outlived its shards, and where there is none, it is the single file, or shards that
    count to their own number.
    """
    there = set(names)
    held = there.intersection(index_files(index)) if index is not None else set()
    if SINGLE in there and not held:
        return [SINGLE]
    return sorted(held) if index is not None else whole_shards(there)


def index_files(content: bytes) -> tuple[str, ...]:
    """Files inside the folder that an index names, sorted; of what is no index none."""
    try:
        told = json.loads(content)
    except ValueError:
        return ()
    weight_map = told.get("weight_map") if isinstance(told, dict) else None
    named = weight_map.values() if isinstance(weight_map, dict) else ()
    return tuple(sorted({file for file in named if isinstance(file, str) and stays_inside(file)}))


def _checked(file: RemoteFile) -> bytes:
    if file.size > LARGEST_SMALL:
        raise CheckpointError(
            f"{file.name} is too large to be what its name says",
            where=file,
            expected=f"at most {LARGEST_SMALL} bytes",
            found=f"{file.size} bytes",
            remedy="do not use this repository",
        )
    content = read_whole(file)
    found = git_sha1(content) if file.sha256 is None else hashlib.sha256(content).hexdigest()
    if found != file.blob:
        raise CheckpointError(
            f"{file.name} is not the file that the Hub lists",
            where=file,
            expected=file.blob,
            found=found,
            remedy="it was damaged on its way: run again",
        )
    return content


def _sha256_of(file: RemoteFile) -> str:
    total = hashlib.sha256()
    for chunk in read_range(file, 0, file.size):
        total.update(chunk)
    return total.hexdigest()


def _unreadable(info: TensorInfo) -> CheckpointError:
    return CheckpointError(
        f"tensor '{info.name}' is stored as {info.dtype}, which is not read here",
        where=f"{info.file}, tensor '{info.name}'",
        expected="one of " + ", ".join(DTYPES),
        found=info.dtype,
        remedy="take the unquantised checkpoint",
    )


def _missing(folder: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name.removesuffix(_HEADER)} of a repository is not in the cache, and the network is switched off",
        where=folder / name.removesuffix(_HEADER),
        expected="a checkpoint that was opened before, at this commit",
        remedy="run once with the network on: `offline` and HF_HUB_OFFLINE switch it off",
    )


def _no_commit(repo: str, revision: str | None, cache: RangeCache) -> CheckpointError:
    kept = cache.names(repo.replace("/", "--"))
    return CheckpointError(
        "which commit is meant can only be asked with the network on",
        where=f"{repo} at {revision or 'its newest commit'}",
        expected="a commit of 40 digits: " + (", ".join(kept[:5]) or "none is in the cache"),
        remedy="name the commit, as ORG/REPO@COMMIT: of a branch or tag `threegates preflight` shows it",
    )
