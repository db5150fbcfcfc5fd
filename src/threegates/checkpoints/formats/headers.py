"""The header of a safetensors file: which tensors it holds and where, checked before they are read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threegates.errors import CheckpointError

# Bits of one element, by the names of the safetensors format.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# The format's own limit; a larger length is a damaged or a hostile file.
LARGEST_HEADER = 100_000_000
GET_AGAIN = "the file is damaged or cut short: download or copy it again"


@dataclass(frozen=True)
class Codes:
    """What a tensor that is read as floats is stored as.

    kind : such as ``F8_E4M3`` or ``Q8_0``. name : of the stored tensor. bits : of one entry, its share of the
    scales included. rounds : whether values were rounded to a grid of few bits for it.
    """

    kind: str
    name: str
    bits: float
    rounds: bool = True


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `offsets` are bytes from the start of the file.

    codes : what it is stored as, where it is not stored as `dtype`. Its offsets are then those that it would
    have in a file of its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offsets: tuple[int, int]
    alias_of: str | None = None
    codes: Codes | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def stored_as(self) -> str:
        """Type of its bytes."""
        return self.codes.kind if self.codes else self.dtype

    @property
    def stored_bytes(self) -> int:
        """Bytes that it takes in its file."""
        return math.ceil(self.size * (self.codes.bits if self.codes else BITS[self.dtype]) / 8)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else raises CheckpointError with line and column."""
    try:
        return _object(path, path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read",
            where=path,
            found=error.strerror,
            remedy="check path and permissions",
        ) from None


def _object(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path.name} does not hold valid JSON", where=path, found=error, remedy=GET_AGAIN
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path.name} does not hold a JSON object",
            where=path,
            expected="an object, {...}",
            found=type(value).__name__,
            remedy=GET_AGAIN,
        )
    return value


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise CheckpointError(
                f"{path.name} lists '{key}' twice",
                where=path,
                expected="each name once",
                remedy="write the file again; one of the two would be read and the other lost",
            )
        result[key] = value
    return result


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file, by name, in the order of their bytes.

    Raises CheckpointError where the header is damaged, where a tensor's bytes do not fit its dtype and shape,
    where they overlap or leave a hole, and where the file is shorter or longer than the header says.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        _refuse_pointer(path, start)
        length = int.from_bytes(start[:8], "little")
        if size < 8 or not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise CheckpointError(
                f"{path.name} has no readable safetensors header",
                where=path,
                expected=f"a header length from 2 to {max(2, min(LARGEST_HEADER, size - 8))} bytes",
                found=f"{length} in a file of {size} bytes",
                remedy=GET_AGAIN,
            )
        file.seek(8)
        header = _object(path, file.read(length))
    header.pop("__metadata__", None)
    infos = [_info(path, 8 + length, name, entry) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offsets, info.name))
    _check_layout(path, 8 + length, size, infos)
    return {info.name: info for info in infos}


def _refuse_pointer(path: Path, start: bytes) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the tensors themselves",
            where=path,
            expected="a safetensors file",
            found="a text that names where the file is",
            remedy="run `git lfs pull` in that folder, or download the repository with `hf download`",
        )


def _info(path: Path, start: int, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (first, last) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, first, last))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise _broken(
            path, name, "a dtype, a shape and two offsets of whole numbers", json.dumps(entry)[:200]
        )
    if dtype not in BITS:
        raise _broken(path, name, "a dtype of the safetensors format: " + ", ".join(BITS), dtype)
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or last - first != bits // 8:
        raise _broken(
            path, name, f"{bits / 8:g} bytes for shape {list(shape)} of {dtype}", f"{last - first} bytes"
        )
    return TensorInfo(name, dtype, shape, path, (start + first, start + last))


def _broken(path: Path, name: str, expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"the header of {path.name} is wrong about tensor '{name}'",
        where=f"{path}, tensor '{name}'",
        expected=expected,
        found=found,
        remedy=GET_AGAIN,
    )


def _check_layout(path: Path, start: int, size: int, infos: list[TensorInfo]) -> None:
    end = start
    for info in infos:
        if info.offsets[0] != end:
            expected = f"bytes from {end}, where the one before it ends"
            raise _broken(path, info.name, expected, f"bytes from {info.offsets[0]}")
        end = info.offsets[1]
    cut = next((info for info in infos if info.offsets[1] > size), None)
    if cut is not None:
        raise CheckpointError(
            f"{path.name} is truncated: tensor '{cut.name}' is not whole",
            where=f"{path}, tensor '{cut.name}'",
            expected=f"{end} bytes",
            found=f"{size} bytes",
            remedy=GET_AGAIN,
        )
    if size > end:
        raise CheckpointError(
            f"{path.name} is longer than its header says",
            where=path,
            expected=f"{end} bytes",
            found=f"{size} bytes",
            remedy=GET_AGAIN,
        )
