"""Null 1a: rounded Gaussian noise that changes exactly as many weights as the run did."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.geometry.laws.masks import AT_COUNT
from threegates.geometry.nulls.noise import critical_scale, gaussian_noise, scales_to_pass, smallest
from threegates.geometry.nulls.null import Null, Observed


def storage_mask_at_density(
    base: Shaped[Tensor, "*shape"], changed: int, generator: torch.Generator | int
) -> Bool[Tensor, "*shape"]:
    """Null 1a: the mask of scaled Gaussian noise that changes exactly `changed` stored weights.

    M = the `changed` entries of smallest critical scale, ties by lowest flat index; the same mask as rounding
    w + s z at any s between the `changed`-th critical scale and the next.

    Parameters
    ----------
    base : finite bfloat16 tensor; changed : in [0, size]; generator : or an integer seed.

    Raises
    ------
    GeometryError : changed is out of range, or base is not finite bfloat16.

    **Source** this study's null 1a; see the module for why the count is exact.
    """
    noise = gaussian_noise(base.shape, generator)
    return smallest(critical_scale(base, noise), changed)


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """Masks of the observed count, at the observed mask's tolerance.

    **Source** as `storage_mask_at_density`.
    """
    base, changed = observed.base, observed.changed
    while observed.eta is None:
        yield storage_mask_at_density(base, changed, generator)
    for needed in scales_to_pass(base, observed.eta, generator):
        yield smallest(needed, changed)


NULL = Null(
    name="storage_density",
    title="storage 1a, equal density",
    colour="#4D4D4D",
    marker="s",
    source="this study's null 1a",
    holds="the count of changed entries, and the weights that noise is rounded on",
    destroys="all that training did: noise of one scale is added to every weight",
    matched_to=("changed",),
    sampler=masks,
    law=AT_COUNT,
    of_storage=True,
)
