"""‖A‖₂ to a stated accuracy by products in float32, and an upper bound of it that is a theorem.

`threegates.geometry.directions.spectral_norm` iterates to the last digits and proves nothing. Where six of
them are enough, fewer products in half as wide a type give them, with the chance that they are wrong.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.certificate import INFLATION, prove_norm, rounding
from threegates.geometry.directions import DENSE_SIDE, PIECE, spectral_norm
from threegates.geometry.operators import WeightOperator, weight_operator

ACCURACY = 1e-6
"""Relative accuracy of a norm, unless another is asked for."""

CERTAIN = 1e-3
"""What no singular value exceeds the norm by, but for the chance of `MISSED`, unless another is asked for."""

MISSED = 1e-6
"""Chance, over the random start, of a larger value that went unseen."""

FINEST = 1e-8
"""Below this, float32 products find no direction good enough."""

MOST_STEPS = 200
"""Products with AᵀA before the slower way is taken; flat spectra of thousands of values take 60 to 100."""


def spectral_norm_within(
    matrix: Shaped[Tensor, "m n"], relative: float = ACCURACY, certain: float = CERTAIN
) -> float:
    """Largest singular value ‖A‖₂ from below: Lanczos on AᵀA in float32, then ‖A x‖/‖x‖ in float64.

    The quotient is no larger than ‖A‖₂ but for its own rounding, about 1e-15 √n. Iteration ends when both
    hold: the residual r of the Ritz value θ = σ² says |θ − λ| ≤ min(r, r²/gap) ≤ 2 · relative · θ, λ the
    eigenvalue that it converges to and gap the distance to the next Ritz value; and an eigenvalue ≥ μ =
    θ (1 + certain)² would have a vector from which the random start is within δ = Π β_j/Π (μ − θ_j) of
    orthogonal, which has a chance of at most √(2n/π) δ ≤ 1e-6. That leaves out what float32 products round,
    some 1e-7 of θ. `spectral_norm_bound` leaves nothing to chance.

    Parameters
    ----------
    matrix : floating; up to a smaller side of `DENSE_SIDE` it is `spectral_norm`'s.
    relative : ≥ 1e-8. certain : at `relative`, all of the accuracy is as sure; that costs half as much again.

    Returns
    -------
    float ≥ 0; 0 for a zero or empty matrix.

    Raises
    ------
    GeometryError : the matrix holds NaN or infinity, or relative is too small.

    **Source** Golub and Van Loan (2013), §10.1; residual bounds: Parlett (1998), §11.7; chances: van
    Dorsselaer, Hochstenbach and van der Vorst (2000).
    """
    if not relative >= FINEST:
        raise GeometryError("float32 products are not so accurate", expected=f"≥ {FINEST}", found=relative)
    if not matrix.numel() or min(matrix.shape) <= DENSE_SIDE:
        return spectral_norm(matrix)
    operator = weight_operator(matrix)
    stored = operator.stored if operator.unit == 1 else operator.stored / operator.unit
    found = _leading_direction(stored.to(torch.float32), relative, certain)
    return spectral_norm(matrix) if found is None else operator.unit * _quotient(operator, found)


def spectral_norm_bound(matrix: Shaped[Tensor, "m n"], relative: float = ACCURACY) -> float:
    """An upper bound of ‖A‖₂, at most about `relative` above it, rounding included.

    s I − AᵀA has a Cholesky factor for s = (σ̂ (1 + relative))², σ̂ by `spectral_norm_within`. Where it has
    none, √(λ̂ + e) with the largest eigenvalue of AᵀA in float64 and e of `singular_values`. Costs AᵀA, which
    for large sides is far more than the norm itself.

    Raises
    ------
    GeometryError : as `spectral_norm_within`.

    **Source** as `threegates.geometry.certificate.prove_by_cholesky`.
    """
    value = spectral_norm_within(matrix, relative)
    if not value:
        return 0.0
    operator = weight_operator(matrix)
    square = prove_norm(operator, (value / operator.unit * (1 + relative)) ** 2)
    if square is None:
        error = (rounding(operator.m) + rounding(operator.n)) * operator.norm() ** 2
        square = float(torch.linalg.eigvalsh(operator.exact_gram)[-1]) + error
    return operator.unit * math.sqrt(square) * INFLATION


def _quotient(operator: WeightOperator, direction: Tensor) -> float:
    """‖A x‖/‖x‖ in float64, A the stored matrix over its unit."""
    x = direction[:, None]
    image = operator.adjoint_times(x) if operator.transposed else operator.times(x)
    return float(image.norm() / x.norm())


def _leading_direction(
    a: Float32[Tensor, "m n"], relative: float, certain: float
) -> Float64[Tensor, " n"] | None:
    """The right singular vector that belongs to ‖A‖₂, or None where it is not found in `MOST_STEPS`.

    Only products with A are float32. The vectors of the basis are orthogonalised against each other in
    float64, twice, so that none of them comes again.
    """
    basis = torch.empty(min(MOST_STEPS, a.shape[1]), a.shape[1], dtype=torch.float64, device=a.device)
    diagonal, beside = np.zeros(len(basis)), np.zeros(len(basis))
    # A fixed start repeats; Gaussian, its direction is uniform.
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(a.shape[1], generator=generator, dtype=torch.float64).to(a.device)
    length = float(image.norm())
    for step in range(len(basis)):
        basis[step] = image / length
        known = basis[: step + 1]
        image = _normal_product(a, basis[step].to(torch.float32)).to(torch.float64)
        diagonal[step] = float(basis[step] @ image)
        for _ in range(2):
            image -= known.T @ (known @ image)
        beside[step] = length = float(image.norm())
        tridiagonal = diagonal[: step + 1], beside[: step + 1]
        direction = _converged(*tridiagonal, relative)
        if direction is not None and _chance(*tridiagonal, certain, a.shape[1]) <= MISSED:
            return known.T @ torch.from_numpy(direction).to(known.device)
        if not length:
            break
    return None


def _normal_product(a: Float32[Tensor, "m n"], x: Float32[Tensor, " n"]) -> Float32[Tensor, " n"]:
    """AᵀA x; each block of rows is read once for both products."""
    out = torch.zeros_like(x)
    for rows in a.split(max(1, PIECE // a.shape[1])):
        out.addmv_(rows.T, torch.mv(rows, x))
    return out


def _converged(diagonal: np.ndarray, beside: np.ndarray, relative: float) -> np.ndarray | None:
    """The largest eigenvector of a tridiagonal matrix, once its residual is small enough.

    beside : its off-diagonal entries, the last of which leads out of it.
    """
    size = len(diagonal)
    if size == 1:
        return np.ones(1) if beside[0] <= 2 * relative * diagonal[0] else None
    values, vectors = scipy.linalg.eigh_tridiagonal(
        diagonal, beside[:-1], select="i", select_range=(size - 2, size - 1)
    )
    residual, gap = abs(beside[-1] * vectors[-1, 1]), values[1] - values[0]
    error = residual * min(1.0, residual / gap) if gap > 0 else residual
    return vectors[:, 1] if error <= 2 * relative * values[1] else None


def _chance(diagonal: np.ndarray, beside: np.ndarray, certain: float, n: int) -> float:
    """Bound on the chance that a uniform start in n dimensions misses an eigenvalue ≥ θ₁ (1 + certain)².

    Of an eigenvector v with eigenvalue λ, the start has v·b = (v·q_{k+1}) Π β_j/Π (λ − θ_j).
    """
    values = scipy.linalg.eigh_tridiagonal(diagonal, beside[:-1], eigvals_only=True)
    away = values[-1] * (1 + certain) ** 2 - values
    tiny = np.finfo(np.float64).tiny
    growth = np.log(np.maximum(beside, tiny)).sum() - np.log(np.maximum(away, tiny)).sum()
    return math.exp(min(0.5 * math.log(2 * n / math.pi) + growth, 0.0))
