"""Decompositions of base weights, kept across runs by content: optional, bounded on disk, safe to share.

One run needs no cache, for it takes every base once and all of its tuned checkpoints inside. Another run on
the same base (a new checkpoint, another seed of a null) finds the decomposition here, where the folder named
by ``THREEGATES_CACHE`` exists or can be made; ``THREEGATES_CACHE_GIB`` bounds it. An entry's name is the
digest of all that decides it: the stored bytes of the weight, k, the accuracy, our code and the versions.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from threegates.atomic import atomic_path
from threegates.digest import code_digest, digest_versions, value_digest
from threegates.errors import RecordError
from threegates.geometry.certificate import Certificate
from threegates.geometry.decomposition import (
    BaseDecomposition,
    LeadingSpectrum,
    decompose,
    decompose_beside_spectrum,
)
from threegates.geometry.operators import weight_operator
from threegates.records.store import remove_leftovers

FOLDER_VARIABLE = "THREEGATES_CACHE"
LIMIT_VARIABLE = "THREEGATES_CACHE_GIB"
DEFAULT_GIB = 10.0
_SUFFIX = ".safetensors"
_KEY = "threegates"
# Room for names, shapes and facts at the head of an entry's file.
_HEADER = 4096


def decompose_base(weight: Tensor, k: int, accuracy: str) -> BaseDecomposition:
    """`decompose`, or what an earlier run kept of the same weight, k and accuracy where a cache is named.

    Raises
    ------
    GeometryError : as `decompose`. RecordError : the cache's limit is no number of GiB.
    """
    cache = named_cache()
    return cache.decompose(weight, k, accuracy) if cache else decompose(weight, k, accuracy)


def decompose_base_beside_spectrum(weight: Tensor, k: int, accuracy: str) -> BaseDecomposition:
    """`decompose_beside_spectrum`, or what an earlier run kept of it, as `decompose_base` has it.

    Raises
    ------
    GeometryError, RecordError : as `decompose_base`.
    """
    cache = named_cache()
    if cache:
        return cache.decompose(weight, k, accuracy, beside_spectrum=True)
    return decompose_beside_spectrum(weight, k, accuracy)


def named_cache() -> BaseCache | None:
    """The cache that the environment names, if it names one."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return BaseCache(Path(folder), _limit()) if folder else None


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_GIB))
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not gib > 0:
        raise RecordError(
            "the limit of the cache is not a size",
            where=LIMIT_VARIABLE,
            expected="a number of GiB above 0",
            found=text,
            remedy=f"set it, or leave it out for {DEFAULT_GIB:g}",
        )
    return int(gib * 2**30)


@dataclass(frozen=True)
class BaseCache:
    """Decompositions in a folder, at most `limit` bytes of them; the least recently used go first.

    Every file appears whole or not at all, and is only ever replaced by an equal one, so that any number of
    processes may read, write and evict at once; a file that vanishes or is damaged is computed anew.
    """

    folder: Path
    limit: int

    def decompose(
        self, weight: Tensor, k: int, accuracy: str, *, beside_spectrum: bool = False
    ) -> BaseDecomposition:
        """The kept decomposition of this weight, or a new one, kept if it fits.

        beside_spectrum : whether it is one by `decompose_beside_spectrum`, which rounds otherwise.
        """
        path = self.folder / (content_digest(weight, k, accuracy, beside_spectrum) + _SUFFIX)
        found = self._read(path, weight)
        if found is None:
            found = (decompose_beside_spectrum if beside_spectrum else decompose)(weight, k, accuracy)
            self._write(path, found)
        return found

    def _read(self, path: Path, weight: Tensor) -> BaseDecomposition | None:
        try:
            with safe_open(path, "pt", device=str(weight.device)) as file:
                facts = json.loads(file.metadata()[_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (FileNotFoundError, RuntimeError):
            # safe_open opens the file twice, and torch, which opens it second, says RuntimeError of one
            # that another process evicted in between. What else it says so of, computing anew will tell.
            return None
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            path.unlink(missing_ok=True)
            return None
        if facts.pop("checksum", None) != _checksum(tensors):
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):
            os.utime(path)  # the time of last use, by which entries are evicted
        return _unpacked(tensors, facts, weight)

    def _write(self, path: Path, base: BaseDecomposition) -> None:
        tensors, facts = _packed(base)
        size = _HEADER + sum(tensor.nbytes for tensor in tensors.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        if size > self.limit:
            return
        facts["checksum"] = _checksum(tensors)
        # What is being written counts too: the next writer looks for room only when it is there.
        with self._alone(), atomic_path(path) as temporary:
            self._make_room(size)
            save_file(tensors, temporary, {_KEY: json.dumps(facts, sort_keys=True)})

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one process write at a time; without locks in the file system, each may keep one too many."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _make_room(self, size: int) -> None:
        """Evict the least recently used entries until `size` more bytes fit, and what killed writers left."""
        remove_leftovers(self.folder)
        entries = sorted(self._entries())
        total = sum(held for _, held, _ in entries)
        for _, held, path in entries:
            if total + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= held

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, size and path of each entry; another process may take one away meanwhile."""
        for path in self.folder.glob("*" + _SUFFIX):
            with suppress(FileNotFoundError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path


def content_digest(weight: Tensor, k: int, accuracy: str, beside_spectrum: bool = False) -> str:
    """sha256 over all that decides a decomposition."""
    return value_digest(
        {
            "weight": _bytes_digest(weight),
            "shape": list(weight.shape),
            "dtype": str(weight.dtype),
            "device": weight.device.type,
            "k": k,
            "accuracy": accuracy,
            "beside_spectrum": beside_spectrum,
            "code": code_digest("threegates.geometry.decomposition"),
            "versions": digest_versions(),
        }
    )


def _bytes_digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    return hashlib.sha256(plain.flatten().view(torch.uint8).numpy().data).hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    return value_digest({name: _bytes_digest(tensor) for name, tensor in tensors.items()})


_SPECTRUM = ("values", "left", "right")
_BOUNDS = ("values", "right", "left", "upper")
_BOUND = "certificate."


def _packed(base: BaseDecomposition) -> tuple[dict[str, Tensor], dict]:
    leading, certificate = base.leading, base.leading.certificate
    tensors = {name: getattr(leading, name) for name in _SPECTRUM}
    tensors |= {_BOUND + name: getattr(certificate, name) for name in _BOUNDS}
    tensors["eigenvalues"] = base.eigenvalues
    if base.basis is not None:
        tensors["basis"] = base.basis
    # JSON keeps a float64 to the last digit.
    facts = {"leading": _scalars(leading), "certificate": _scalars(certificate)}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, facts


def _scalars(result: LeadingSpectrum | Certificate) -> dict:
    values = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str))}


def _unpacked(tensors: dict[str, Tensor], facts: dict, weight: Tensor) -> BaseDecomposition:
    bounds: dict[str, Any] = {name: tensors[_BOUND + name] for name in _BOUNDS}
    spectrum: dict[str, Any] = {name: tensors[name] for name in _SPECTRUM}
    certificate = Certificate(**bounds, **facts["certificate"])
    leading = LeadingSpectrum(**spectrum, **facts["leading"], certificate=certificate)
    return BaseDecomposition(weight_operator(weight), tensors.get("basis"), tensors["eigenvalues"], leading)
