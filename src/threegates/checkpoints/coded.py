"""Checkpoints whose weights are stored as codes, read as floats tensor by tensor; and the grids of these.

A weight was rounded to the nearest value that a code of few bits can stand for. How far such values lie apart
at a weight, its gap, is what a difference has to be measured against: rounding alone moves a weight by up to
half of it, and by its error on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from threegates.checkpoints.formats.headers import BITS, TensorInfo
from threegates.checkpoints.pairs import row_ranges
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import DTYPES, Checkpoint
from threegates.checkpoints.views import CanonicalView, View

#: What is read of a tensor: its values; the larger of the two gaps beside each; or the root of the mean
#: square of what rounding to each took, if all that is rounded to it is equally likely.
VALUES, GAPS, ERRORS = "values", "gaps", "errors"


@dataclass(frozen=True)
class Coded(Checkpoint):
    """A checkpoint with tensors that are not stored as the floats that they are read as.

    reads : values, or of each value its gap or its error, which are 0 for floats as stored.

    Every coded tensor has offsets as if it lay in a file of its own, so that a part that is cut out of it by
    its place is found again.
    """

    reads: str = field(default=VALUES, kw_only=True)

    def stored(self, name: str) -> Tensor:
        """A tensor as floats, made some rows at a time."""
        info = self.info(name)
        if info.codes is None:
            return self._exact(self.plain(info).stored(name))
        whole = torch.empty(info.shape, dtype=DTYPES[info.dtype])
        for start, stop in row_ranges(info.shape):
            whole[start:stop] = self.stored_rows(name, start, stop)
        return whole

    def stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor as floats; no other code is read."""
        info = self.info(name)
        if info.codes is None:
            return self._exact(rows_of(self.plain(info), name, start, stop))
        width = width_of(self.whole_shape(info.codes.name))
        first = info.offsets[0] // (BITS[info.dtype] // 8) // width
        each = math.prod(info.shape[1:]) // width
        rows = (first + start * each, first + stop * each)
        return self.decoded(info.codes.name, *rows).reshape(stop - start, *info.shape[1:])

    def _exact(self, stored: Tensor) -> Tensor:
        return stored if self.reads == VALUES else torch.zeros_like(stored)

    def plain(self, info: TensorInfo) -> Checkpoint:
        """What reads a tensor that is stored as floats."""
        raise NotImplementedError

    def whole_shape(self, stored: str) -> tuple[int, ...]:
        """Shape of a coded tensor as it is stored, by its stored name."""
        raise NotImplementedError

    def decoded(self, stored: str, start: int, stop: int) -> Tensor:
        """Rows of a coded tensor, all leading axes made one: what `reads` says of them."""
        raise NotImplementedError


def width_of(shape: tuple[int, ...]) -> int:
    """Entries of a row where all leading axes are made one; a vector's rows have one each."""
    return shape[-1] if len(shape) > 1 else 1


def own_offsets(info: TensorInfo) -> TensorInfo:
    """The same tensor as if it lay in a file of its own."""
    return replace(info, offsets=(0, info.size * BITS[info.dtype] // 8))


def reading(checkpoint: Checkpoint, what: str) -> Checkpoint:
    """The same checkpoint, view for view, of which gaps or errors are read; only of one with codes."""
    if isinstance(checkpoint, Coded):
        return replace(checkpoint, reads=what)
    assert isinstance(checkpoint, View), "no tensor of this checkpoint is stored as codes"
    changed: dict[str, Any] = {"inner": reading(checkpoint.inner, what)}
    if isinstance(checkpoint, CanonicalView):
        changed["reader"] = reading(checkpoint.reader, what)
    return replace(checkpoint, **changed)


def rounded_kinds(checkpoint: Checkpoint) -> dict[str, int]:
    """How many tensors are stored as codes of few bits, by kind of code."""
    found: dict[str, int] = {}
    names = set()
    for info in checkpoint.infos.values():
        if info.codes and info.codes.rounds and info.codes.name not in names:
            names.add(info.codes.name)
            found[info.codes.kind] = found.get(info.codes.kind, 0) + 1
    return found
