"""Ranges of remote files kept on this disk: bounded, safe to share, verified on reading.

One folder serves all processes. What is in it is found by its content (sha256 of the file, first and last
byte), so that two repositories with one shard share its tensors. Files appear whole or not at all; each
begins with the sha256 of the rest, and a damaged one is as good as none.

``THREEGATES_RANGES`` names the folder, which is beside huggingface_hub's own cache if it does not;
``THREEGATES_RANGES_GIB`` bounds what tensors may take in it (5 if not given, 0 keeps none). The least
recently used go first.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import constants
from torch import Tensor

from threegates.atomic import atomic_path, write_text
from threegates.errors import CheckpointError

FOLDER_VARIABLE = "THREEGATES_RANGES"
LIMIT_VARIABLE = "THREEGATES_RANGES_GIB"
DEFAULT_GIB = 5.0
# A file begins with the sha256 of the rest, 32 bytes: the values behind it lie where processors like to read.
_SEAL = 32
_KEPT, _PARTIAL, _DIGEST = ".range", ".partial", ".sha256"

Chunks = Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class RangeCache:
    """Ranges and small files in a folder; the ranges take at most `limit` bytes."""

    folder: Path
    limit: int

    @classmethod
    def named(cls) -> RangeCache:
        """The cache that the environment names, or the one beside huggingface_hub's.

        Raises
        ------
        CheckpointError : the limit is no number of GiB.
        """
        folder = os.environ.get(FOLDER_VARIABLE) or Path(constants.HF_HOME) / "threegates-ranges"
        return cls(Path(folder).expanduser(), _limit())

    def small(self, name: str) -> bytes | None:
        """A small file that `keep_small` kept, if it is there and undamaged."""
        try:
            content = (self.folder / "repositories" / name).read_bytes()
        except OSError:
            return None
        seal, rest = content[:_SEAL], content[_SEAL:]
        return rest if hashlib.sha256(rest).digest() == seal else None

    def keep_small(self, name: str, content: bytes) -> None:
        """Keep a small file, whole or not at all; a folder that cannot be written keeps nothing."""
        with suppress(OSError), atomic_path(self.folder / "repositories" / name) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)

    def names(self, folder: str) -> list[str]:
        """Names of what is kept in a folder of small files, sorted."""
        return sorted(path.name for path in (self.folder / "repositories" / folder).glob("*"))

    def digest(self, key: str) -> str | None:
        """sha256 of a range when it was read last, also where the range itself has been evicted."""
        try:
            text = self._path(key, _DIGEST).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return text if len(text) == 2 * _SEAL else None

    def holds(self, key: str) -> bool:
        """Whether a range is kept here, damaged or not."""
        return self._path(key, _KEPT).is_file()

    def content(self, key: str, size: int, chunks: Chunks) -> Tensor:
        """The bytes of a range, uint8 of shape (size,): from the cache, else from `chunks`, and kept.

        Bytes from the cache are mapped from their file and take no memory of the process's own.

        Raises
        ------
        CheckpointError : the bytes are not those that came the last time.
        """
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        found = self._mapped(key, size)
        if found is not None:
            return found
        with self._room(key, size) as file:
            if file is None:
                return self._in_memory(key, size, chunks)
            self._receive(key, file, chunks)
            os.replace(file.name, self._path(key, _KEPT))
        # Only an eviction by someone else's larger tensor can come between.
        mapped = self._mapped(key, size)
        return self._in_memory(key, size, chunks) if mapped is None else mapped

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / "ranges" / key[:2] / (key + ending)

    def _mapped(self, key: str, size: int) -> Tensor | None:
        path = self._path(key, _KEPT)
        try:
            with open(path, "rb") as file:
                if os.fstat(file.fileno()).st_size != _SEAL + size:
                    raise ValueError("cut short")
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            _drop(path)
            return None
        seal = hashlib.sha256(memoryview(pages)[_SEAL:])
        if seal.digest() != pages[:_SEAL] or self.digest(key) not in (None, seal.hexdigest()):
            _drop(path)
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use, by which ranges are evicted
        return torch.frombuffer(pages, dtype=torch.uint8, offset=_SEAL)

    def _in_memory(self, key: str, size: int, chunks: Chunks) -> Tensor:
        content, at, seal = torch.empty(size, dtype=torch.uint8), 0, hashlib.sha256()
        view = content.numpy().data
        for chunk in chunks():
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
            seal.update(chunk)
        self._remember(key, seal.hexdigest())
        return content

    def _receive(self, key: str, file: BinaryIO, chunks: Chunks) -> None:
        seal = hashlib.sha256()
        file.seek(_SEAL)
        for chunk in chunks():
            file.write(chunk)
            seal.update(chunk)
        self._remember(key, seal.hexdigest())
        file.seek(0)
        file.write(seal.digest())
        file.flush()

    def _remember(self, key: str, digest: str) -> None:
        before = self.digest(key)
        if before not in (None, digest):
            raise CheckpointError(
                "the Hub sends other bytes than the last time",
                where=self._path(key, _DIGEST),
                expected=f"sha256 {before}, as before",
                found=f"sha256 {digest}",
                remedy="one of the two transfers was damaged: delete that file and run again, or download the"
                " whole checkpoint, whose sha256 the Hub tells",
            )
        if before is None:
            with suppress(OSError):
                write_text(self._path(key, _DIGEST), digest)

    @contextmanager
    def _room(self, key: str, size: int) -> Iterator[BinaryIO | None]:
        """A file of the range's size that nobody else writes, or None where none is kept; gone in the end.

        Its size counts from the beginning, so that several processes together keep to the limit.
        """
        try:
            file = self._reserved(key, _SEAL + size)
        except OSError:
            # A folder that cannot be written, or a full disk: the bytes come, and are not kept.
            file = None
        if file is None:
            yield None
            return
        try:
            with file:
                yield file
        finally:
            Path(file.name).unlink(missing_ok=True)

    def _reserved(self, key: str, size: int) -> BinaryIO | None:
        if size > self.limit:
            return None
        path = self._path(key, f".{os.getpid()}-{os.urandom(4).hex()}{_PARTIAL}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            if not self._make_room(size):
                return None
            file = open(path, "w+b")  # noqa: SIM115 (closed by _room)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                _claim(file, size)
            except OSError:
                file.close()
                path.unlink(missing_ok=True)
                raise
            return file

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, size: int) -> bool:
        """Evict the least recently used ranges until `size` more bytes fit; whether they do."""
        kept, total = [], 0
        for path in (self.folder / "ranges").glob("*/*"):
            if path.suffix == _PARTIAL and _is_left_behind(path):
                path.unlink(missing_ok=True)
            elif path.suffix in (_PARTIAL, _KEPT):
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    total += stat.st_size
                    kept += [(stat.st_mtime, stat.st_size, path)] if path.suffix == _KEPT else []
        for _, held, path in sorted(kept):
            if total + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            total -= held
        return total + size <= self.limit


def _drop(path: Path) -> None:
    """Remove a damaged file, where that is allowed."""
    with suppress(OSError):
        path.unlink()


def _claim(file: BinaryIO, size: int) -> None:
    """Take the disk space now, where the system can, rather than run out of it half-way."""
    claim = getattr(os, "posix_fallocate", None)
    if claim is None:
        os.truncate(file.fileno(), size)
    else:
        claim(file.fileno(), 0, size)


def _is_left_behind(path: Path) -> bool:
    """Whether nobody writes a partial file any more: its writer held a lock on it, which died with it."""
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_GIB))
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise CheckpointError(
            "the limit of the cache of ranges is not a size",
            where=LIMIT_VARIABLE,
            expected="a number of GiB, 0 to keep none",
            found=text,
            remedy=f"set it, or leave it out for {DEFAULT_GIB:g}",
        )
    return int(gib * 2**30)
