"""Null 1b: rounded Gaussian noise whose stored update has the norm of the run's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.laws.masks import AT_NORM
from threegates.geometry.nulls.noise import Real, gaussian_noise, rounded_sum, scales_to_pass
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.precision import require_finite_bf16


def storage_mask_at_norm(
    base: Shaped[Tensor, "*shape"], scale: Real, generator: torch.Generator | int
) -> Bool[Tensor, "*shape"]:
    """Null 1b: the mask of Gaussian noise of a given scale, by adding and rounding it.

    M_ij = 1[round_bf16(w_ij + s z_ij) ≠ w_ij], with s from `threegates.geometry.laws.noise.scale_of_norm`.

    Parameters
    ----------
    base : finite bfloat16 tensor; scale : standard deviation of the noise, ≥ 0.

    Raises
    ------
    GeometryError : scale is negative or not finite, or base is not finite bfloat16.

    **Source** this study's null 1b.
    """
    require_finite_bf16(base, "base")
    _check_scale(scale)
    return rounded_sum(base, gaussian_noise(base.shape, generator), scale) != base


def _check_scale(scale: Real) -> None:
    if not 0 <= scale < math.inf:
        raise GeometryError("a noise scale is finite and not negative", found=scale)


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """Masks of noise of the observed scale, at the observed mask's tolerance.

    **Source** as `storage_mask_at_norm`.
    """
    base, scale = observed.base, observed.scale
    while observed.eta is None:
        yield storage_mask_at_norm(base, scale, generator)
    for needed in scales_to_pass(base, observed.eta, generator):
        yield needed < scale


NULL = Null(
    name="storage_norm",
    title="storage 1b, equal norm",
    colour="#7F7F7F",
    marker="^",
    source="this study's null 1b",
    holds="the Frobenius norm of the stored update, and the weights that noise is rounded on",
    destroys="the count of changed entries, and all that training did",
    matched_to=("scale",),
    sampler=masks,
    law=AT_NORM,
    of_storage=True,
)
