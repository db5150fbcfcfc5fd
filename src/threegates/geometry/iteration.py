"""Rayleigh–Ritz and the first-order (Davidson) correction: from a near eigenbasis to singular triplets.

Notation: W is m × n with n the smaller side, `basis` V₀ (n × n) holds approximate right singular vectors in
descending order, `eigenvalues` λ₀ approximates the squares of the singular values that belong to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from threegates.geometry.certificate import Residuals, RitzTriplets
from threegates.geometry.operators import WeightOperator

MAX_REFINEMENTS = 3
"""Refinements before giving up; each must at least halve the residual, and a good one divides it by 1000."""

CHUNK = 2048
"""Rows of a thin float32 matrix that are widened at a time."""

LOST = 2.0**10
"""κ(W Q)² up to which a Gram matrix may stand in for Householder QR: U is then orthonormal to κ u."""


def rayleigh_ritz(operator: WeightOperator, q: Float[Tensor, "n q"]) -> RitzTriplets:
    """Best singular triplets of W within the span of the columns of q, in the type of q.

    Q = orth(q), Y = W Q, Y = Ũ Σ̂ Ṽᵀ, U = Ũ, V = Q Ṽ. Where Y is far from singular, Ṽ and Σ̂ come from YᵀY and
    U = Y Ṽ Σ̂⁻¹; else Householder QR keeps U orthonormal for any rank. The small problem is float64 always.

    Raises
    ------
    torch.linalg.LinAlgError : LAPACK does not converge (no finite matrix is known to do this).

    **Source** Rayleigh–Ritz for singular values: Golub and Van Loan (2013), §10.4.
    """
    right = orthonormal(q)
    image = operator.times(right)
    left, values, turn = _thin_svd(image)
    scale = values.to(q.dtype)
    right, image = right @ turn, image @ turn
    if left is None:
        left = image / scale
    return RitzTriplets(
        left=left,
        values=values,
        right=right,
        right_residual=operator.adjoint_times(left).sub_(right * scale),
        left_residual=image.sub_(left * scale).norm(dim=0).to(torch.float64),
    )


def orthonormal(q: Float[Tensor, "n q"]) -> Float[Tensor, "n q"]:
    """Orthonormal columns of the same span, in the type of q; one Cholesky factor where they nearly are so.

    **Source** Cholesky QR errs by κ² u: Yamamoto et al. (2015).
    """
    gram = q.T @ q
    near = float((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).norm()) < 0.1
    if not near:
        return torch.linalg.qr(q).Q
    factor = torch.linalg.cholesky(gram)
    return torch.linalg.solve_triangular(factor.T, q, upper=True, left=False)


def _thin_svd(y: Float[Tensor, "m q"]) -> tuple[Tensor | None, Tensor, Tensor]:
    """(Ũ, Σ̂, Ṽ) of a thin matrix; Ũ is None, and Y Ṽ Σ̂⁻¹ will do, where κ(Y)² costs few digits."""
    squares, turn = torch.linalg.eigh(_wide_gram(y))
    if float(squares[0]) > float(squares[-1]) / LOST > 0:
        return None, squares.flip(0).sqrt(), turn.flip(1).to(y.dtype)
    basis, triangle = torch.linalg.qr(y.to(torch.float64))
    rotation, values, turned = torch.linalg.svd(triangle)
    return (basis @ rotation).to(y.dtype), values, turned.T.to(y.dtype)


def _wide_gram(y: Float[Tensor, "m q"]) -> Float64[Tensor, "q q"]:
    """YᵀY in float64, a block of rows at a time."""
    gram = torch.zeros(y.shape[1], y.shape[1], dtype=torch.float64, device=y.device)
    for rows in y.split(CHUNK):
        wide = rows.to(torch.float64)
        gram.addmm_(wide.T, wide)
    return gram


def warm_start(
    operator: WeightOperator, basis: Float[Tensor, "n n"], eigenvalues: Float64[Tensor, " n"], q: int
) -> Float[Tensor, "n q"]:
    """First-order prediction of the top q right singular vectors of a matrix near the basis's own.

    Q = V₀[:, :q], Z = WᵀW Q, QᵀZ = S θ Sᵀ, B = V₀[:, q:]ᵀ (Z S − Q S θ), X_ij = B_ij/(θ_j − λ₀,q+i);
    Q S + V₀[:, q:] X. The error is second order in the update. In the type of the basis: that Q S θ is taken
    away, 0 for an orthogonal V₀, keeps the rounding in VᵀV − I, times σ₁², out of X.

    **Source** first-order perturbation theory; as an iteration, Davidson (1975).
    """
    known, rest = basis[:, :q], basis[:, q:]
    z = operator.adjoint_times(operator.times(known))
    theta, rotation = torch.linalg.eigh(known.T @ z)
    theta, rotation = theta.flip(0), rotation.flip(1)
    turned = known @ rotation
    mixing = first_order(rest.T @ (z @ rotation - turned * theta), theta, eigenvalues[q:])
    return turned.addmm_(rest, mixing)


def refine(
    operator: WeightOperator,
    basis: Float[Tensor, "n n"],
    eigenvalues: Float64[Tensor, " n"],
    ritz: RitzTriplets,
) -> RitzTriplets:
    """One more correction from the residual, and Rayleigh–Ritz in the type of the triplets.

    WᵀW v_j − σ̂_j² v_j = σ̂_j r_j, so X_ij = σ̂_j (V₀[:, q:]ᵀ R)_ij/(σ̂_j² − λ₀,q+i). The products with the
    basis may be float32, for they only set how fast the residual falls, not how far.

    **Source** Davidson (1975); Wilkinson's iterative refinement (1963).
    """
    rest = basis[:, ritz.values.numel() :]
    coupling = (rest.T @ ritz.right_residual.to(rest.dtype)) * ritz.values.to(rest.dtype)
    mixing = first_order(coupling, ritz.values.square(), eigenvalues[ritz.values.numel() :])
    return rayleigh_ritz(operator, ritz.right + (rest @ mixing).to(ritz.right.dtype))


def first_order(
    coupling: Float[Tensor, "rest q"], theta: Float[Tensor, " q"], beyond: Float64[Tensor, " rest"]
) -> Float[Tensor, "rest q"]:
    """X_ij = B_ij/(θ_j − λ_i), and 0 where that is no small number (|X| ≥ ½, or 0/0)."""
    denominator = (theta.to(torch.float64) - beyond[:, None]).to(coupling.dtype)
    small = coupling.abs() < denominator.abs() / 2
    return torch.where(small, coupling / denominator, torch.zeros_like(coupling))


@dataclass(frozen=True)
class Polished:
    """Triplets after some refinements, the bounds of their residuals, and whether those were good enough."""

    ritz: RitzTriplets
    residuals: Residuals
    refinements: int
    good: bool


def polish(
    operator: WeightOperator,
    basis: Float[Tensor, "n n"],
    eigenvalues: Float64[Tensor, " n"],
    ritz: RitzTriplets,
    measure: Callable[[RitzTriplets], Residuals],
    is_good: Callable[[RitzTriplets, Residuals], bool],
) -> Polished:
    """Refine until `is_good`, or until the residual that `measure` bounds stops falling."""
    before, made = float("inf"), 0
    residuals = measure(ritz)
    while not (good := is_good(ritz, residuals)) and made < MAX_REFINEMENTS:
        if residuals.right > before / 2 or ritz.values.numel() == operator.n:
            break
        before, made = residuals.right, made + 1
        ritz = refine(operator, basis, eigenvalues, ritz)
        residuals = measure(ritz)
    return Polished(ritz, residuals, made, good)
