"""Spectra of a product of thin factors, without the product."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def singular_values_of_product(
    left: Float[Tensor, "rows r"], right: Float[Tensor, "r columns"]
) -> Float64[Tensor, " k"]:
    """The singular values of L R that can differ from zero, descending: k = min(rows, columns, r).

    With L = Q₁R₁ and Rᵀ = Q₂R₂ they are those of the r × r matrix R₁R₂ᵀ: O((rows + columns) r²) in place of
    O(rows · columns · min). Both decompositions are backward stable, so that errors are a few ε σ₁ in
    float64, small values included in units of σ₁ alone.

    Parameters
    ----------
    left, right : finite factors of any float type.

    Returns
    -------
    float64, ≥ 0, in the product's unit.

    **Source** Golub & Van Loan (2013), Matrix Computations, §8.6.
    """
    first, second = _triangle(left.double()), _triangle(right.double().T)
    return torch.linalg.svdvals(first @ second.T)


def _triangle(thin: Tensor) -> Tensor:
    """R of a QR decomposition, at most as high as it is wide."""
    return torch.linalg.qr(thin, mode="r").R
