"""Frobenius norms of tensors and their differences, in float64, a piece at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threegates.checkpoints.pairs import TensorPair

# A large tensor is never held in float64 as a whole.
PIECE = 1 << 22


def update_norm(pair: TensorPair) -> float:
    """Frobenius norm of the difference of the two bf16 tensors, in float64."""
    return frobenius(pair.tuned, pair.base)


def frobenius(x: Tensor, minus: Tensor | None = None) -> float:
    """‖x‖ or ‖x − minus‖ in float64, over pieces: a large tensor is never held in float64 as a whole."""
    return math.sqrt(squared_norm(x, minus))


def squared_norm(x: Tensor, minus: Tensor | None = None) -> float:
    """‖x‖² or ‖x − minus‖², as `frobenius` sums it."""
    pieces = x.reshape(-1).split(PIECE)
    less = minus.reshape(-1).split(PIECE) if minus is not None else [None] * len(pieces)
    total = 0.0
    for piece, other in zip(pieces, less, strict=True):
        wide = piece.double() if other is None else piece.to(torch.float64, copy=True).sub_(other)
        total += float(wide @ wide)
    return total
