"""A base and a tuned checkpoint side by side: which tensors can be compared, and the two of one name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from threegates.checkpoints.formats.headers import TensorInfo
from threegates.checkpoints.formats.roles import layer
from threegates.checkpoints.offences import refuse_strangers
from threegates.checkpoints.quantised import COMPARABLE, is_scale
from threegates.checkpoints.rounding import round_to_bf16
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import NotFiniteError, PairError

#: Entries of a tensor that are held at a time where not all of it has to be. Fixed, not fitted to a machine,
#: so that sums over blocks are the same everywhere; a tensor of no more entries is one block.
BLOCK = 1 << 20


class Status(StrEnum):
    """How a tensor enters the comparison; only `compared` tensors have a mask.

    `empty` is a tensor that one side stores without entries, as a shard that was never gathered.
    `not_finite` is told by values, which headers do not know: no row of `align` has it.
    """

    compared = "compared"
    only_in_base = "only-in-base"
    only_in_tuned = "only-in-tuned"
    resized = "resized"
    not_a_float = "not-a-float"
    empty = "empty"
    not_finite = "not-finite"


@dataclass(frozen=True)
class AlignedTensor:
    """A tensor of a pair; shape and stored dtype are None on a side that does not store it."""

    name: str
    status: Status
    shape_base: tuple[int, ...] | None
    shape_tuned: tuple[int, ...] | None
    dtype_base: str | None
    dtype_tuned: str | None


@dataclass(frozen=True)
class TensorPair:
    """Both sides of one tensor, rounded to bfloat16 and as stored."""

    name: str
    base: Tensor
    tuned: Tensor
    base_stored: Tensor
    tuned_stored: Tensor


@dataclass(frozen=True)
class PairRows:
    """Both sides of one tensor, some rows at a time: `block(start, stop)` gives those rows.

    Iterating goes through all of them, in blocks of `row_ranges`; at least one, even of an empty tensor.
    """

    name: str
    shape: tuple[int, ...]
    block: Callable[[int, int], TensorPair]
    entries: int = BLOCK

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[TensorPair]:
        for start, stop in row_ranges(self.shape, self.entries):
            yield self.block(start, stop)


def align(base: Checkpoint, tuned: Checkpoint) -> list[AlignedTensor]:
    """Every tensor that either side stores, sorted by name, each with its status.

    Compared is what both sides hold in one shape, as floats. A tied head is its embedding: no tensor of its
    own where both sides tie it, and compared with the other side's head where that stores one.

    Raises
    ------
    PairError : as in `refuse_strangers`, of the matrices of the smaller side less than half can be compared.
    """
    left, right = _own(base, tuned), _own(tuned, base)
    rows = [_aligned(name, left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())]
    refuse_strangers(base, tuned, [row for row in rows if row.status is not Status.compared], _shares(rows))
    return rows


def _own(checkpoint: Checkpoint, other: Checkpoint) -> dict[str, TensorInfo]:
    """Tensors that a checkpoint stores, and aliases of those that the other one stores by that name."""
    stored = {name for name, info in other.infos.items() if info.alias_of is None}
    return {name: info for name, info in checkpoint.infos.items() if info.alias_of is None or name in stored}


def _aligned(name: str, base: TensorInfo | None, tuned: TensorInfo | None) -> AlignedTensor:
    shapes = [info.shape if info else None for info in (base, tuned)]
    dtypes = [info.dtype if info else None for info in (base, tuned)]
    return AlignedTensor(name, _status(base, tuned), shapes[0], shapes[1], dtypes[0], dtypes[1])


def _status(base: TensorInfo | None, tuned: TensorInfo | None) -> Status:
    if tuned is None:
        return Status.only_in_base
    if base is None:
        return Status.only_in_tuned
    if not {base.dtype, tuned.dtype} <= set(COMPARABLE):
        return Status.not_a_float
    if base.shape == tuned.shape:
        return Status.compared
    return Status.empty if 0 in (base.size, tuned.size) else Status.resized


def _shares(rows: Iterable[AlignedTensor]) -> tuple[int, int]:
    """How many matrices are compared, and how many the smaller side has; of tensors, where neither has any.

    An array of more dimensions counts as one matrix. None are what a quantised weight is packed into, and an
    embedding or head whose vocabulary alone has another size.
    """
    rows = [row for row in rows if not (is_scale(row.name) or _is_padded(row))]
    shapes = [[shape for shape in (row.shape_base, row.shape_tuned) if shape is not None] for row in rows]
    kept = [row for row, known in zip(rows, shapes, strict=True) if max(map(len, known)) > 1] or rows
    sides = [sum(one is not None for one in side) for side in zip(*map(_shapes, kept), strict=True)]
    return sum(row.status is Status.compared for row in kept), min(sides, default=0)


def _is_padded(row: AlignedTensor) -> bool:
    """Whether only the number of rows differs of a matrix outside blocks, as where tokens were added."""
    base, tuned = _shapes(row)
    outside = row.status is Status.resized and layer(row.name) is None
    return outside and base is not None and tuned is not None and base[1:] == tuned[1:]


def _shapes(row: AlignedTensor) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    return row.shape_base, row.shape_tuned


def load_pair(base: Checkpoint, tuned: Checkpoint, name: str) -> TensorPair:
    """Both sides of a tensor; a value that is not finite, or shapes that differ, raise PairError."""
    left, left_stored = load_finite(base, name, "base")
    right, right_stored = load_finite(tuned, name, "tuned")
    if left.shape != right.shape:
        raise _two_shapes(base, tuned, name)
    return TensorPair(name, left, right, left_stored, right_stored)


def load_rows(base: Checkpoint, tuned: Checkpoint, name: str, entries: int = BLOCK) -> PairRows:
    """Both sides of a tensor, read block by block as they are gone through; raises as `load_pair` does."""
    sides = ((base, _comparable(base, name, "base")), (tuned, _comparable(tuned, name, "tuned")))
    shape = sides[0][1].shape
    if shape != sides[1][1].shape:
        raise _two_shapes(base, tuned, name)

    def block(start: int, stop: int) -> TensorPair:
        left, right = (_rows_of(checkpoint, name, start, stop) for checkpoint, _ in sides)
        rounded = _finite(base, name, "base", left), _finite(tuned, name, "tuned", right)
        return TensorPair(name, *rounded, left, right)

    return PairRows(name, shape, block, entries)


def rows_of_pair(pair: TensorPair, entries: int = BLOCK) -> PairRows:
    """A pair that is held already, some rows at a time; nothing is copied."""

    def block(start: int, stop: int) -> TensorPair:
        sides = (pair.base, pair.tuned, pair.base_stored, pair.tuned_stored)
        return TensorPair(pair.name, *(_cut(side, start, stop) for side in sides))

    return PairRows(pair.name, tuple(pair.base.shape), block, entries)


def row_ranges(shape: tuple[int, ...], entries: int = BLOCK) -> list[tuple[int, int]]:
    """Where blocks of at most `entries` entries start and stop, in whole rows: at least one row each.

    A tensor of no more entries is one block, as is one without entries or dimensions.
    """
    rows, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    if rows * width <= entries:
        return [(0, rows)]
    step = max(1, entries // width)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def load_finite(checkpoint: Checkpoint, name: str, side: str) -> tuple[Tensor, Tensor]:
    """A tensor in bfloat16 and as stored, of which every value is finite in both."""
    _comparable(checkpoint, name, side)
    stored = checkpoint.stored(name)
    return _finite(checkpoint, name, side, stored), stored


def check_finite(checkpoint: Checkpoint, name: str, side: str) -> None:
    """Raise NotFiniteError as `load_finite` does, but hold a block of the tensor at a time.

    Whole numbers and quantised codes have nothing that could be infinite.
    """
    info = checkpoint.info(name)
    if info.dtype not in COMPARABLE:
        return
    for start, stop in row_ranges(info.shape):
        _finite(checkpoint, name, side, _rows_of(checkpoint, name, start, stop))


def _rows_of(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Tensor:
    """Some rows of a tensor as stored, or all of one without rows."""
    return rows_of(checkpoint, name, start, stop) if checkpoint.info(name).shape else checkpoint.stored(name)


def _cut(x: Tensor, start: int, stop: int) -> Tensor:
    return x[start:stop] if x.dim() else x


def _comparable(checkpoint: Checkpoint, name: str, side: str) -> TensorInfo:
    info = checkpoint.info(name)
    if info.dtype not in COMPARABLE:
        raise PairError(
            f"tensor '{name}' of the {side} is stored as {info.dtype}",
            where=f"{info.file}, tensor '{name}'",
            expected="one of " + ", ".join(COMPARABLE),
            found=info.dtype,
            remedy="take the unquantised checkpoint",
        )
    return info


def _two_shapes(base: Checkpoint, tuned: Checkpoint, name: str) -> PairError:
    return PairError(
        f"tensor '{name}' has two shapes and cannot be compared",
        where=f"base {base.folder}, tuned {tuned.folder}",
        expected=f"shape {list(base.info(name).shape)}, as in base",
        found=f"shape {list(tuned.info(name).shape)}",
        remedy="compare only tensors whose status is 'compared'",
    )


def _finite(checkpoint: Checkpoint, name: str, side: str, stored: Tensor) -> Tensor:
    """A tensor or some rows of it in bfloat16, or PairError about all of the tensor."""
    rounded = _rounded(stored)
    if not _is_finite(rounded):
        raise _not_finite(checkpoint, name, side)
    return rounded


def _rounded(stored: Tensor) -> Tensor:
    """`round_to_bf16` by blocks: of float64 it needs several copies of what it rounds at a time."""
    ranges = row_ranges(tuple(stored.shape))
    if stored.dtype != torch.float64 or len(ranges) == 1:
        return round_to_bf16(stored)
    rounded = torch.empty(stored.shape, dtype=torch.bfloat16, device=stored.device)
    for start, stop in ranges:
        rounded[start:stop] = round_to_bf16(stored[start:stop])
    return rounded


def _is_finite(x: Tensor) -> bool:
    """Both extremes are finite; NaN and infinities pass through them, and no mask of x's size is made."""
    return not x.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(x))


def _not_finite(checkpoint: Checkpoint, name: str, side: str) -> NotFiniteError:
    """What is wrong with a tensor that is known to hold such values: how many, and the first."""
    info, count = checkpoint.info(name), 0
    index: list[int] = []
    value = torch.zeros(())
    for start, stop in row_ranges(info.shape):
        stored = _rows_of(checkpoint, name, start, stop)
        bad = ~round_to_bf16(stored).isfinite()
        here = int(bad.count_nonzero())
        if here and not count:
            first = bad.nonzero()[0].tolist()
            index, value = [start + first[0], *first[1:]] if first else [], stored[tuple(first)]
        count += here
    finite = bool(value.isfinite())
    kind = "values too large for bfloat16" if finite else "values that are not finite"
    what = "beyond bfloat16" if finite else "not finite"
    remedy = (
        "such weights need float32: what is stored in bfloat16 of this tensor would be infinite"
        if finite
        else "download the file again; if its sha256 is right, training or upload left these values"
    )
    return NotFiniteError(
        f"tensor '{name}' of the {side} has {kind}",
        where=f"{info.file}, tensor '{name}'",
        expected=f"{info.size} finite values",
        found=f"{count} of them {what}, the first {value.item()} at index {index}",
        remedy=remedy,
    )
