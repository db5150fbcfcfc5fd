"""Null of emergence: a coordinate-blind walk, seen at some times through storage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real, as_generator, gaussian_noise, scale_to_pass, smallest
from threegates.geometry.precision import ETA, gaps_beyond


def storage_path(
    base: Shaped[Tensor, "*shape"],
    changed: Sequence[int],
    times: Sequence[Real],
    generator: torch.Generator | int,
    eta: float = ETA,
) -> list[Bool[Tensor, "*shape"]]:
    """Null of emergence: a coordinate-blind Gaussian walk, seen at some times through storage.

    B(t) is Brownian motion in each weight; the mask at time t is the `changed[t]` entries of smallest
    critical scale for B(t). Masks of one path agree more than independent draws, as those of a run do.

    Parameters
    ----------
    base : finite bfloat16 tensor; changed : count at each time; times : positive, ascending.
    eta : relative tolerance of Definition 2.1, by which a weight counts as changed.

    Raises
    ------
    GeometryError : lengths differ, times do not ascend from above 0, a count is out of range.

    **Source** this study's null of emergence; Wiener (1923).
    """
    steps = np.diff([0.0, *times])
    if len(changed) != len(times) or (steps <= 0).any():
        raise GeometryError(
            "each observation needs a count and a later time",
            expected="as many counts as ascending times > 0",
            found=f"{len(changed)} counts at times {list(times)}",
        )
    source = as_generator(generator)
    gaps = gaps_beyond(base, eta)
    walk = torch.zeros(tuple(base.shape), dtype=torch.float64, device=source.device)
    masks = []
    for count, step in zip(changed, steps, strict=True):
        walk = walk + math.sqrt(step) * gaussian_noise(base.shape, source)
        masks.append(smallest(scale_to_pass(gaps, walk), count))
    return masks
