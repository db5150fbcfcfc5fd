"""The coordinates that a reparametrised checkpoint's heads stand in, kept beside its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threegates.checkpoints.formats.headers import read_json
from threegates.errors import CheckpointError

NAME = "frame.json"


@dataclass(frozen=True)
class Frame:
    """By layer: the rotation of every head's values (head_dim, head_dim), and the order of the query heads.

    Rotations were applied before orders.
    """

    rotations: Mapping[int, Tensor] = field(default_factory=dict)
    orders: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def json(self) -> str:
        """As it is written; a float64 survives to the last digit."""
        told = {
            "rotations": {str(layer): rotation.tolist() for layer, rotation in self.rotations.items()},
            "orders": {str(layer): list(order) for layer, order in self.orders.items()},
        }
        return json.dumps(told, sort_keys=True) + "\n"


def read_frame(folder: Path) -> Frame:
    """The frame of a checkpoint's folder; without a file the heads stand as the base's do.

    Raises
    ------
    CheckpointError : the file is not a frame.
    """
    path = folder / NAME
    if not path.is_file():
        return Frame()
    told = read_json(path)
    try:
        return Frame(
            {int(layer): _matrix(rows) for layer, rows in told["rotations"].items()},
            {int(layer): [int(head) for head in order] for layer, order in told["orders"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "this is no frame of attention heads",
            where=path,
            expected="rotations and orders by layer",
            found=f"{type(error).__name__}: {error}",
            remedy="write the checkpoint again",
        ) from error


def _matrix(rows: Any) -> Tensor:
    matrix = torch.tensor(rows, dtype=torch.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a rotation is square, not {tuple(matrix.shape)}")
    return matrix
