"""A bf16 tensor as counts of its codes: all that a coordinate-blind null asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real
from threegates.geometry.precision import ETA, gaps_beyond, require_finite_bf16

PATTERNS = 1 << 16
TILE = 1 << 18
"""Entries looked up at a time: their indices in 64 bits stay in a core's cache."""

_MINUS_ZERO = 0x8000


@dataclass(frozen=True)
class CodeCounts:
    """How many weights of a tensor have each bf16 code, and of those how many each label.

    patterns : (K,) bit patterns that occur, without a sign for zero, as unsigned integers.
    by_label : (K, L) int64 counts of weights of that code with label 0 … L − 1.
    """

    patterns: np.ndarray
    by_label: np.ndarray

    @cached_property
    def counts(self) -> np.ndarray:
        """(K,) weights of each code, float64."""
        return self.by_label.sum(axis=1).astype(np.float64)

    @property
    def size(self) -> int:
        """Weights in all."""
        return int(self.by_label.sum())

    @cached_property
    def values(self) -> np.ndarray:
        """(K,) the codes' values, float64."""
        return self._weights.double().numpy()

    def with_labels(self, *labels: int) -> np.ndarray:
        """(K,) weights of each code that have one of these labels, float64."""
        return self.by_label[:, list(labels)].sum(axis=1).astype(np.float64)

    def by_pattern(self, values: np.ndarray) -> np.ndarray:
        """(…, 65536) values of the codes, (…, K), by bit pattern: −0 has those of +0, what is not there 0."""
        table = np.zeros((*values.shape[:-1], PATTERNS), dtype=values.dtype)
        table[..., self.patterns] = values
        table[..., _MINUS_ZERO] = table[..., 0]
        return table

    def gaps(self, eta: Real = ETA) -> tuple[np.ndarray, np.ndarray]:
        """(K,) distances of each code down and up to where η calls it changed, as `precision.gaps_beyond`."""
        down, up = gaps_beyond(self._weights, eta)
        return down.numpy(), up.numpy()

    @property
    def _weights(self) -> Tensor:
        return torch.from_numpy(self.patterns.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


class CodeCounter:
    """Counts codes of a tensor that comes in pieces, −0 as +0, apart for each label.

    kinds : number of labels, 1 where there are none.
    """

    def __init__(self, kinds: int = 1) -> None:
        self.kinds = kinds
        self._found = np.zeros(PATTERNS * kinds, dtype=np.int64)

    def add(self, piece: Tensor, labels: Tensor | None = None) -> None:
        """Count one more piece, of finite bfloat16."""
        require_finite_bf16(piece, "base")
        bits = piece.contiguous().view(torch.int16).reshape(-1)
        flat = None if labels is None else labels.reshape(-1)
        # With labels there are many counters, which every tile goes through.
        tile = max(TILE, PATTERNS * self.kinds)
        for start in range(0, bits.numel(), tile):
            here = slice(start, start + tile)
            self._found += _counted(bits[here], None if flat is None else flat[here], self.kinds)

    def whole(self) -> CodeCounts:
        """The counts of all pieces."""
        table = self._found.reshape(PATTERNS, self.kinds).copy()
        table[0] += table[_MINUS_ZERO]
        table[_MINUS_ZERO] = 0
        patterns = np.flatnonzero(table.any(axis=1))
        return CodeCounts(patterns, table[patterns])


def bit_patterns(base: Shaped[Tensor, "*shape"]) -> np.ndarray:
    """Bit patterns of a bfloat16 tensor as unsigned integers, of its shape; on the CPU a view of it."""
    return base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)


def count_codes(
    base: Shaped[Tensor, "*shape"],
    labels: UInt8[Tensor, "*labels"] | None = None,
    kinds: int = 1,
) -> CodeCounts:
    """Count the codes of a bf16 tensor, −0 as +0, apart for each label.

    Parameters
    ----------
    base : finite bfloat16 tensor, on any device.
    labels : in [0, kinds) for every weight, such as which target masks it lies in; none stands for one kind.
    kinds : number of labels.

    Returns
    -------
    counts of the codes that occur; exact, the same on every device.

    Raises
    ------
    GeometryError : base is not finite bfloat16, or labels do not have its shape or exceed `kinds`.

    **Source** this study: a coordinate-blind null sees a weight's code alone.
    """
    if labels is not None and labels.shape != base.shape:
        raise GeometryError(
            "labels do not fit the base", expected=tuple(base.shape), found=tuple(labels.shape)
        )
    if labels is not None and labels.numel() and int(labels.max()) >= kinds:
        raise GeometryError("a label has no kind", expected=f"0 … {kinds - 1}", found=int(labels.max()))
    counter = CodeCounter(kinds)
    counter.add(base, labels)
    return counter.whole()


def _counted(bits: Tensor, labels: Tensor | None, kinds: int) -> np.ndarray:
    """Counts of pattern · kinds + label over one tile."""
    if bits.device.type == "cpu":
        index = bits.numpy().view(np.uint16).astype(np.intp)
        if labels is not None:
            index = index * kinds + labels.numpy()
        return np.bincount(index, minlength=PATTERNS * kinds)
    place = (bits.to(torch.int64) & 0xFFFF) * kinds + (0 if labels is None else labels.to(torch.int64))
    return torch.bincount(place, minlength=PATTERNS * kinds).cpu().numpy()
