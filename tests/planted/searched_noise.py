"""Noise of equal norm by search and on whole tensors, as before there were laws: an oracle of theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real, as_generator, gaussian_noise, rounded_sum
from threegates.geometry.precision import ETA, gaps_beyond, require_finite_bf16


def storage_scale_for_norm(
    base: Shaped[Tensor, "*shape"],
    norm: Real,
    generator: torch.Generator | int,
    *,
    draws: int = 4,
    tolerance: Real = 1e-3,
) -> float:
    """Scale of Gaussian noise whose *rounded* update has a given Frobenius norm.

    Solves rms over draws of ‖round(w + s Z) − w‖_F = norm for s, with the same Z at every s (common random
    numbers): each |round(w + s z) − w| grows with s, so the left side does too, and a bracket in log s holds.

    Parameters
    ----------
    base : finite bfloat16 tensor; norm : ≥ 0, the stored ‖ΔW‖_F to match; draws : number of Z.
    tolerance : relative, on the norm. On tiny tensors the left side moves in steps that can jump over the
        target; the search then ends at the step (relative width 1e-9).

    Returns
    -------
    s ≥ 0; 0 where norm is 0. Between draws the norm of one rounded update still varies by O(size^-1/2).

    Raises
    ------
    GeometryError : norm is negative or not finite, base is empty or not finite bfloat16.

    **Source** this study's null 1b.
    """
    require_finite_bf16(base, "base")
    if not 0 <= norm < math.inf or not base.numel():
        raise GeometryError(
            "no noise has that norm", expected="a finite norm ≥ 0 of a tensor with entries", found=norm
        )
    if norm == 0:
        return 0.0
    source = as_generator(generator)
    noises = [gaussian_noise(base.shape, source) for _ in range(draws)]
    return _increasing_root(
        lambda s: _rounded_norm(base, noises, s) / norm - 1, norm / math.sqrt(base.numel()), tolerance
    )


def _rounded_norm(base: Tensor, noises: Sequence[Tensor], scale: float) -> float:
    before = base.to(torch.float64)
    squares = [float((rounded_sum(base, z, scale).to(torch.float64) - before).square().sum()) for z in noises]
    return math.sqrt(sum(squares) / len(squares))


def _increasing_root(excess: Callable[[float], float], guess: Real, tolerance: Real) -> float:
    """Root of an increasing function of s > 0 that goes from −1 to ∞, perhaps in steps."""
    low, high = _bracket(excess, guess)
    below, above = excess(low), excess(high)
    middle, value = (low, below) if abs(below) < abs(above) else (high, above)
    while abs(value) > tolerance and high > low * (1 + 1e-9):
        # Between false position and bisection: as fast as the one, and as sure to end as the other.
        share = min(max(-below / (above - below), 0.25), 0.75)
        middle = low * (high / low) ** share
        value = excess(middle)
        if value < 0:
            low, below = middle, value
        else:
            high, above = middle, value
    return middle


def _bracket(excess: Callable[[float], float], guess: Real) -> tuple[float, float]:
    low = high = float(guess)
    while excess(low) > 0:
        low, high = low / 2, low
    while excess(high) < 0:
        low, high = high, high * 2
    return low, high


def change_probability(
    base: Shaped[Tensor, "*shape"], scale: Real, eta: float = ETA
) -> Float64[Tensor, "*shape"]:
    """Probability that N(0, scale²) noise changes each stored weight, in the sense of Definition 2.1.

    P_ij = Φ(−down_ij/s) + Φ(−up_ij/s), with the gaps of w_ij at η, half those to its neighbours unless η is
    larger than the paper's; in [0, 1], 0 where s = 0.

    Raises
    ------
    GeometryError : scale is negative or not finite, or base is not finite bfloat16.

    **Source** this study; Φ is the standard normal distribution function.
    """
    if not 0 <= scale < math.inf:
        raise GeometryError("a noise scale is finite and not negative", found=scale)
    down, up = gaps_beyond(base, eta)
    return torch.special.ndtr(-down / scale) + torch.special.ndtr(-up / scale)
