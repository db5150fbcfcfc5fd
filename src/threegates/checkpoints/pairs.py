"""A base and a tuned checkpoint side by side: which tensors can be compared, and the two of one name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from threegates.checkpoints.headers import TensorInfo
from threegates.checkpoints.roles import role
from threegates.checkpoints.rounding import round_to_bf16
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError

COMPARABLE = ("BF16", "F16", "F32", "F64")
LISTED = 10


class Status(StrEnum):
    """How a tensor enters the comparison; only `compared` tensors have a mask."""

    compared = "compared"
    only_in_base = "only-in-base"
    only_in_tuned = "only-in-tuned"
    resized = "resized"


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


def align(base: Checkpoint, tuned: Checkpoint) -> list[AlignedTensor]:
    """Every tensor that either side stores, sorted by name.

    A tied head is its embedding, so it is no tensor of its own. A head or embedding that one side lacks, or
    whose vocabulary was resized, keeps a row with its status; every other difference raises PairError.
    """
    left, right = _own(base), _own(tuned)
    rows, offenders = [], []
    for name in sorted(left.keys() | right.keys()):
        row, offence = _align_one(name, left.get(name), right.get(name))
        rows.append(row)
        offenders += [offence] if offence else []
    if offenders:
        raise _misaligned(base, tuned, offenders)
    return rows


def _own(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    return {name: info for name, info in checkpoint.infos.items() if info.alias_of is None}


def _align_one(
    name: str, base: TensorInfo | None, tuned: TensorInfo | None
) -> tuple[AlignedTensor, str | None]:
    status, offence = _judge(name, base, tuned)
    shapes = [info.shape if info else None for info in (base, tuned)]
    dtypes = [info.dtype if info else None for info in (base, tuned)]
    return AlignedTensor(name, status, shapes[0], shapes[1], dtypes[0], dtypes[1]), offence


def _judge(name: str, base: TensorInfo | None, tuned: TensorInfo | None) -> tuple[Status, str | None]:
    present = base or tuned
    assert present is not None
    vocabulary = role(name, present.shape) in ("embedding", "head")
    if base is None or tuned is None:
        status, side = (Status.only_in_base, "tuned") if tuned is None else (Status.only_in_tuned, "base")
        return status, None if vocabulary else f"{name}: missing in {side}"
    if base.shape != tuned.shape:
        resized = vocabulary and base.shape[1:] == tuned.shape[1:]
        shapes = f"shape {list(base.shape)} in base, {list(tuned.shape)} in tuned"
        return Status.resized, None if resized else f"{name}: {shapes}"
    if base.dtype not in COMPARABLE or tuned.dtype not in COMPARABLE:
        return Status.compared, f"{name}: stored as {base.dtype} in base, {tuned.dtype} in tuned"
    return Status.compared, None


def _misaligned(base: Checkpoint, tuned: Checkpoint, offenders: list[str]) -> PairError:
    kinds = {
        side: checkpoint.config.get("model_type") for side, checkpoint in (("base", base), ("tuned", tuned))
    }
    remedy = (
        "check that the tuned model was trained from this base; nothing is compared until all tensors match"
    )
    if kinds["base"] != kinds["tuned"]:
        remedy = f"the models are of two kinds ({kinds['base']} and {kinds['tuned']}); " + remedy
    if any(": stored as " in offence for offence in offenders):
        remedy = "take the unquantised checkpoints; " + remedy
    return PairError(
        f"{len(offenders)} tensor{'s' * (len(offenders) > 1)} of the pair cannot be compared",
        where=f"base {base.folder}, tuned {tuned.folder}",
        expected=f"equal names and shapes, stored as {', '.join(COMPARABLE)}",
        found=_listed(offenders),
        remedy=remedy,
    )


def _listed(offenders: Iterable[str]) -> str:
    offenders = list(offenders)
    rest = [f"and {len(offenders) - LISTED} more"] if len(offenders) > LISTED else []
    return "".join(f"\n    {line}" for line in offenders[:LISTED] + rest)


def load_pair(base: Checkpoint, tuned: Checkpoint, name: str) -> TensorPair:
    """Both sides of a tensor; a value that is not finite, or shapes that differ, raise PairError."""
    left, left_stored = load_finite(base, name, "base")
    right, right_stored = load_finite(tuned, name, "tuned")
    if left.shape != right.shape:
        raise PairError(
            f"tensor '{name}' has two shapes and cannot be compared",
            where=f"base {base.folder}, tuned {tuned.folder}",
            expected=f"shape {list(left.shape)}, as in base",
            found=f"shape {list(right.shape)}",
            remedy="compare only tensors whose status is 'compared'",
        )
    return TensorPair(name, left, right, left_stored, right_stored)


def load_finite(checkpoint: Checkpoint, name: str, side: str) -> tuple[Tensor, Tensor]:
    """A tensor in bfloat16 and as stored, of which every value is finite in both."""
    info = checkpoint.info(name)
    if info.dtype not in COMPARABLE:
        raise PairError(
            f"tensor '{name}' of the {side} is stored as {info.dtype}",
            where=f"{info.file}, tensor '{name}'",
            expected="one of " + ", ".join(COMPARABLE),
            found=info.dtype,
            remedy="take the unquantised checkpoint",
        )
    stored = checkpoint.stored(name)
    rounded = round_to_bf16(stored)
    if not _is_finite(rounded):
        raise _not_finite(info, side, stored, rounded)
    return rounded, stored


def _is_finite(x: Tensor) -> bool:
    """Both extremes are finite; NaN and infinities pass through them, and no mask of x's size is made."""
    return not x.numel() or all(bool(extreme.isfinite()) for extreme in torch.aminmax(x))


def _not_finite(info: TensorInfo, side: str, stored: Tensor, rounded: Tensor) -> PairError:
    bad = ~rounded.isfinite()
    first = tuple(int(i) for i in bad.nonzero()[0])
    overflow = bool(stored[first].isfinite())
    kind = "values too large for bfloat16" if overflow else "values that are not finite"
    return PairError(
        f"tensor '{info.name}' of the {side} has {kind}",
        where=f"{info.file}, tensor '{info.name}'",
        expected=f"{bad.numel()} finite values",
        found=f"{int(bad.sum())} of them not finite, the first {stored[first].item()} at index {list(first)}",
        remedy="download the file again; if its sha256 is right, the upload is damaged: leave the pair out",
    )
