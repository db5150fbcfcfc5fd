"""Updates brought to one size: a run's ΔW scaled to another's norm, and Gaussian noise of that norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.directions import frobenius_norm
from threegates.geometry.nulls.noise import Real, gaussian_noise
from threegates.geometry.precision import to_bf16
from threegates.geometry.thresholds import require_finite


@dataclass(frozen=True)
class ScaledUpdate:
    """A base moved by an update of a chosen Frobenius norm, before storage and after.

    `factor` multiplied ΔW; `unrounded` is float64; `rounded` is bfloat16, rounded once from it.
    """

    factor: float
    unrounded: Tensor
    rounded: Tensor

    def stored_norm(self, base: Shaped[Tensor, "*shape"]) -> float:
        """‖rounded − base‖_F: what storage leaves of the norm. Rounding may swallow it or add to it."""
        return frobenius_norm(self.rounded.to(torch.float64) - base.to(torch.float64))


def match_norm(base: Shaped[Tensor, "*shape"], master: Float[Tensor, "*shape"], norm: Real) -> ScaledUpdate:
    """Scale ΔW = master − base to a Frobenius norm: W = base + (norm/‖ΔW‖_F) ΔW.

    Directions stay, size goes: what then still differs between two runs is not that one moved further.

    Parameters
    ----------
    base : the tensor that training started from; master : the fp32 master after it, not its bf16 copy, whose
        ΔW has already lost what lies below half a ULP.
    norm : ‖ΔW‖_F to reach before rounding, ≥ 0.

    Raises
    ------
    GeometryError : norm is negative or not finite; ΔW is zero (and norm is not) or not finite.

    **Source** this study's control.
    """
    before = base.detach().to(torch.float64)
    return _scaled(before, master.detach().to(torch.float64) - before, norm)


def gaussian_of_norm(
    base: Shaped[Tensor, "*shape"], norm: Real, generator: torch.Generator | int
) -> ScaledUpdate:
    """Move a base by i.i.d. Gaussian noise of exactly that Frobenius norm: the update without geometry.

    The norm holds before rounding; null 1b, `threegates.geometry.nulls.storage_norm`, matches it after
    rounding.

    Raises
    ------
    GeometryError : norm is negative or not finite, or base is not finite.

    **Source** this study's control.
    """
    noise = gaussian_noise(base.shape, generator).to(base.device, torch.float64)
    return _scaled(base.detach().to(torch.float64), noise, norm)


def _scaled(base: Tensor, delta: Tensor, norm: Real) -> ScaledUpdate:
    require_finite(base)
    if not 0 <= norm < math.inf:
        raise GeometryError("an update has a finite norm ≥ 0", found=norm)
    own = frobenius_norm(delta)
    if own == 0 < norm:
        raise GeometryError("a zero update cannot be scaled", expected=f"to reach a norm of {norm}", found=0)
    factor = norm / own if own else 0.0
    unrounded = base + factor * delta
    return ScaledUpdate(factor, unrounded, to_bf16(unrounded))
