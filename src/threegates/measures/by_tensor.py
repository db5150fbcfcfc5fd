"""Measuring a pair tensor by tensor: what is kept of a base for its next tuned one, and of a run that stops.

A table of tensors, of drift or of overlaps is rows that come tensor by tensor. Each tensor's rows are written
to a file of their own, a part, as soon as they are there; a measurement that was killed goes on behind the
last one. Part files are JSON, which gives every float back to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd
import torch
from torch import Tensor

from threegates.atomic import write_text
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import RecordError

T = TypeVar("T")
#: Rows of one tensor, by table.
Rows = dict[str, list[dict]]


@dataclass(frozen=True)
class Shared:
    """What was computed from the base tensor at hand, for the next tuned tensor beside it.

    One of these lives as long as one base tensor does. What is kept is found by what it is and by the values
    it was computed from, so that equal weights of two checkpoints are one.
    """

    kept: dict[Hashable, list[tuple[Tensor, Any]]] = field(default_factory=dict)

    def of(self, what: Hashable, weight: Tensor, compute: Callable[[], T]) -> T:
        """`compute()`, or what it gave for an equal weight before."""
        known = self.kept.setdefault(what, [])
        for other, value in known:
            if other is weight or (other.dtype == weight.dtype and torch.equal(other, weight)):
                return value
        known.append((weight, compute()))
        return known[-1][1]


class ByTensor(Protocol):
    """A pair that can be measured tensor by tensor, in any order."""

    @property
    def base(self) -> Checkpoint:
        """The checkpoint that training started from."""

    @property
    def tuned(self) -> Checkpoint:
        """The one that it ended with."""

    @property
    def tables(self) -> Mapping[str, Mapping[str, str]]:
        """Tables that it fills, with their columns and types."""

    @property
    def names(self) -> Sequence[str]:
        """Tensors that it measures, in the order of their rows."""

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """Rows of one tensor; they depend on nothing that other tensors or pairs left in `shared`."""


def measure_all(pair: ByTensor) -> dict[str, pd.DataFrame]:
    """Every tensor of one pair, one after the other."""
    return as_tables(pair, [pair.rows(tensor, Shared()) for tensor in pair.names])


def as_tables(pair: ByTensor, parts: Sequence[Rows]) -> dict[str, pd.DataFrame]:
    """The tables of a pair from the rows of its tensors."""
    return {
        table: typed([row for part in parts for row in part[table]], columns)
        for table, columns in pair.tables.items()
    }


def typed(rows: Sequence[Mapping], columns: Mapping[str, str]) -> pd.DataFrame:
    """A frame with these columns and types, whichever keys the rows have."""
    frame = pd.DataFrame(list(rows), columns=list(columns))
    return frame.astype({name: kind for name, kind in columns.items() if kind != "object"})


@dataclass(frozen=True)
class Parts:
    """The parts of a measurement: a file a tensor, in a folder named by the digest of all that decides them.

    root : holds nothing but the parts of this measurement, made with whatever parameters or code.
    """

    root: Path
    digest: str

    @property
    def folder(self) -> Path:
        """Where the parts of this digest lie."""
        return self.root / self.digest[:16]

    def path(self, tensor: str) -> Path:
        """Where a tensor's rows lie, or would lie; names of tensors may hold what names of files may not."""
        return self.folder / f"{hashlib.sha256(tensor.encode()).hexdigest()[:24]}.json"

    def has(self, tensor: str) -> bool:
        """Whether a tensor is measured; a part that exists is whole."""
        return self.path(tensor).is_file()

    def read(self, tensor: str) -> Rows:
        """Rows of a tensor.

        Raises
        ------
        RecordError : there are none, or not whole ones.
        """
        try:
            return json.loads(self.path(tensor).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RecordError(
                f"what was measured of tensor '{tensor}' is not there any more",
                where=self.path(tensor),
                remedy="remove that folder, see that no other process measures the same pair, and run again",
            ) from error

    def write(self, tensor: str, rows: Rows) -> None:
        """Keep the rows of a tensor, whole or not at all."""
        write_text(self.path(tensor), json.dumps(rows))

    def drop_others(self) -> None:
        """Remove the parts of other inputs, parameters or code."""
        for other in self.root.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)
