"""All singular values of a tall matrix that is never held, and its leading right vectors, from WᵀW alone.

An embedding of a whole vocabulary has a hundred times as many rows as columns. Its Gram matrix is a sum over
blocks of rows, and tells everything of the smaller side; the left vectors, as tall as it is, are never made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.angles import Angles, principal_angles
from threegates.geometry.certificate import INFLATION, orthonormality_defect, rounding
from threegates.geometry.spectra import FullSpectrum

PANEL = 256
"""Columns of the Gram matrix that one product gives: of its upper half little is computed for nothing."""


class GramSum:
    """Lower triangle of WᵀW in float64, from W's rows as they come."""

    def __init__(self, columns: int) -> None:
        self.rows = 0
        self._sum = torch.zeros(columns, columns, dtype=torch.float64)

    def add(self, rows: Shaped[Tensor, "rows columns"]) -> None:
        """Take some more rows, finite, of any type and on any device."""
        wide = rows.to(torch.float64)
        self._sum = self._sum.to(wide.device)
        for left in range(0, wide.shape[1], PANEL):
            part = wide[:, left : left + PANEL]
            self._sum[left:, left : left + PANEL].addmm_(wide[:, left:].T, part)
        self.rows += len(rows)

    def whole(self) -> Float64[Tensor, "columns columns"]:
        """WᵀW, which is handed over: nothing can be added any more."""
        gram, self._sum = self._sum, self._sum.new_empty(0)
        for left in range(0, len(gram), PANEL):
            below = slice(left + PANEL, None)
            gram[left : left + PANEL, below] = gram[below, left : left + PANEL].T
        return gram


@dataclass(frozen=True)
class SmallSide:
    """What a Gram matrix tells: all singular values, the k leading right vectors, a bound on their sin Θ."""

    spectrum: FullSpectrum
    right: Tensor
    sine: float

    @property
    def gap(self) -> float:
        """σ̂_k − σ̂_{k+1}."""
        values, k = self.spectrum.values, self.right.shape[1]
        return float(values[k - 1]) - (float(values[k]) if k < len(values) else 0.0)


def small_side(gram: Float64[Tensor, "n n"], rows: int, k: int) -> SmallSide:
    """Singular values and leading right vectors of a matrix of so many rows, from its Gram matrix.

    |λ_i − λ̂_i| ≤ e = ‖G V − V Λ‖_F + (γ_m + γ_n √n + 2 ω)‖W‖_F² for all i, ω the defect of VᵀV from I;
    hence |σ_i − σ̂_i| ≤ min(e/σ̂_i, √e), and sin Θ ≤ e/(λ̂_k − λ̂_{k+1} − e), or 1 where that says nothing.
    Both are theorems.

    Parameters
    ----------
    gram : WᵀW, symmetric, as of `GramSum`; k : in 1 … n.

    Raises
    ------
    GeometryError : k lies outside 1 … n.

    **Source** Weyl (1912); Davis and Kahan (1970); Parlett (1998), §11.5; rounding: Higham (2002), §3.5.
    """
    n = len(gram)
    if not 1 <= k <= n:
        raise GeometryError("no leading subspace of that size", expected=f"1 … {n}", found=k)
    found, vectors = torch.linalg.eigh(gram)
    frobenius = float(gram.diagonal().sum())
    relative = rounding(rows + 3) + rounding(n + 3) * math.sqrt(n) + 2 * orthonormality_defect(vectors)
    error = (_residual(gram, found, vectors) + relative * frobenius) * 1.001
    squares = found.flip(0)
    values = squares.clamp(min=0.0).sqrt()
    errors = error / values.clamp(min=math.sqrt(error) or 1.0)
    room = float(squares[k - 1] - squares[k]) - error if k < n else math.inf
    sine = min(1.0, error / room * INFLATION) if room > 0 else 1.0
    return SmallSide(FullSpectrum(values, errors, "gram"), vectors[:, n - k :].flip(1), sine)


def _residual(gram: Tensor, values: Tensor, vectors: Tensor) -> float:
    """‖G V − V Λ‖_F, some columns at a time."""
    total = 0.0
    for left in range(0, len(gram), PANEL):
        some = vectors[:, left : left + PANEL]
        total += float((gram @ some - some * values[left : left + PANEL]).square().sum())
    return math.sqrt(total)


def right_angles(base: SmallSide, tuned: SmallSide) -> Angles:
    """Principal angles of both leading right subspaces, in rad, with the bound that their sines leave.

    Of one and the same side they are 0, exactly.

    **Source** as `threegates.geometry.angles.subspace_angles`.
    """
    if tuned is base:
        return Angles(base.right.new_zeros(base.right.shape[1]), 0.0, 0.0)
    values = principal_angles(base.right, tuned.right)
    floor = sum(_rounding(one.right) for one in (base, tuned))
    return Angles(values, min(math.pi / 2, math.asin(base.sine) + math.asin(tuned.sine) + floor), floor)


def _rounding(basis: Float[Tensor, "rows k"]) -> float:
    rows, k = basis.shape
    return 2 * (orthonormality_defect(basis) + rounding(rows + 2 * k) * math.sqrt(k))
