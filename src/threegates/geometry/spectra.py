"""All singular values of a matrix, and how far an update moves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.certificate import rounding
from threegates.geometry.decomposition import check_accuracy
from threegates.geometry.operators import WeightOperator, weight_operator


@dataclass(frozen=True)
class FullSpectrum:
    """All singular values, descending, with an error bound each, and the method: 'gram' or 'svd'. float64."""

    values: Tensor
    errors: Tensor
    method: str


def singular_values(
    weight: Float[Tensor, "rows columns"] | WeightOperator, accuracy: str = "certified"
) -> FullSpectrum:
    """All singular values of a matrix, without vectors.

    'fast' and 'certified': σ = √λ(WᵀW) in float64. |λ̂ − λ| ≤ e = (γ_m + n u)‖W‖_F², hence |σ̂ − σ| ≤
    min(e/σ̂, √e): far below float32's error for large σ, but up to about 1e-7 σ₁ where σ is nearly 0.
    'reference': a float64 SVD, |σ̂ − σ| ≤ n u σ₁ for all. The n u of LAPACK is its own estimate, no theorem.

    Parameters
    ----------
    weight : finite floating matrix with entries, or its operator, whose Gram matrix is then taken as it is.

    Raises
    ------
    GeometryError : an empty or non-finite matrix, an unknown accuracy.

    **Source** Golub and Van Loan (2013), §8.6.2; LAPACK Users' Guide (1999), §4.7, §4.9.
    """
    check_accuracy(accuracy)
    operator = weight_operator(weight)
    n, unit = operator.n, operator.unit
    if accuracy == "reference":
        values = torch.linalg.svdvals(operator.dense())
        errors = torch.full_like(values, float(rounding(n)) * float(values[0]))
        return FullSpectrum(values * unit, errors * unit, "svd")
    squares = torch.linalg.eigvalsh(operator.exact_gram).flip(0).clamp(min=0.0)
    error = (rounding(operator.m) + rounding(n)) * operator.norm() ** 2
    values = squares.sqrt()
    errors = error / values.clamp(min=math.sqrt(error) or 1.0)
    return FullSpectrum(values * unit, errors * unit, "gram")


def normalised_spectral_shift(base: Float64[Tensor, " base"], tuned: Float64[Tensor, " tuned"]) -> float:
    """NSS = ‖σ(W₊) − σ(W₀)‖₂/‖σ(W₀)‖₂, of all singular values in descending order.

    Returns
    -------
    float in [0, ‖ΔW‖_F/‖W₀‖_F]; 0 where both are zero, ∞ where only the base is.

    Raises
    ------
    GeometryError : different lengths.

    **Source** Zhu et al. (2025), §4; the upper limit is Mirsky's (1960) theorem.
    """
    if base.shape != tuned.shape:
        raise GeometryError(
            "spectra of different length do not compare", expected=len(base), found=len(tuned)
        )
    shift, size = float((tuned - base).norm()), float(base.norm())
    return shift / size if size else (math.inf if shift else 0.0)


def spectral_shift(base: FullSpectrum, tuned: FullSpectrum) -> tuple[float, float]:
    """NSS of two spectra found by one method, and a bound on its error.

    The error is at most (‖e₊ + e₀‖ + NSS ‖e₀‖)/(‖σ₀‖ − ‖e₀‖), e the bounds on each value; they are worst
    cases, and the same method on both sides makes the true error far smaller for a small update.

    Raises
    ------
    GeometryError : the methods differ, or the lengths.

    **Source** as `normalised_spectral_shift`; the triangle inequality.
    """
    if base.method != tuned.method:
        raise GeometryError(
            "the error of one method would be taken for a shift", expected=base.method, found=tuned.method
        )
    shift = normalised_spectral_shift(base.values, tuned.values)
    size, blur = float(base.values.norm()), float(base.errors.norm())
    if not blur < size:
        return shift, 0.0 if shift == 0.0 == float(tuned.errors.norm()) else math.inf
    return shift, (float((base.errors + tuned.errors).norm()) + shift * blur) / (size - blur)
