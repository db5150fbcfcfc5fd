"""Updates that add up: when a stored weight first shows a path, and what a displacement does to storage."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real
from threegates.geometry.precision import (
    bf16_codes,
    half_gap_towards,
    require_finite_bf16,
    sign_word,
    to_bf16,
    ulp,
)


def displacement_ratio(
    base: Shaped[Tensor, "*shape"], displacement: Float64[Tensor, "*shape"]
) -> Float64[Tensor, "*shape"]:
    """|d| over half the gap of the stored weight on the side to which d points.

    Above 1 the weight leaves its code, below 1 it does not, at 1 `crosses` decides.

    Parameters
    ----------
    base : finite bfloat16 tensor; displacement : what was added to it, exact in float64.

    Returns
    -------
    float64 tensor, ≥ 0.

    Raises
    ------
    GeometryError : base is not bfloat16 or not finite.

    **Source** Zhu et al. (2025), Cor. 3.6, with the gap of either side as in `precision.half_gaps`.
    """
    require_finite_bf16(base, "base")
    return displacement.abs() / half_gap_towards(base, sign_word(displacement))


def crosses(base: Shaped[Tensor, "*shape"], ratio: Float64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Say where a displacement of that `displacement_ratio` changes storage: ratio > 1, ties at odd codes.

    **Source** round to nearest, ties to even: IEEE 754-2019 §4.3.1.
    """
    odd = (bf16_codes(base) & 1).to(torch.bool)
    return (ratio > 1) | ((ratio == 1) & odd)


def reaches_half_ulp(
    base: Shaped[Tensor, "*shape"], displacement: Float64[Tensor, "*shape"]
) -> Bool[Tensor, "*shape"]:
    """The paper's rule for the same: |d| ≥ ½ ULP(w), whatever the side.

    At powers of two the gap towards zero is only half of that, and ties go to the even code.

    **Source** Zhu et al. (2025), Cor. 3.6 and Lemma E.2.
    """
    return displacement.abs() >= ulp(base) / 2


def first_visible_step(
    weights: Shaped[Tensor, " n"], rate: Real, towards: Int64[Tensor, " n"], master: torch.dtype, limit: int
) -> Int64[Tensor, " n"]:
    """Run AdamW on a constant gradient and count the steps until the stored weight differs.

    Nothing is derived: the optimiser moves a master of the given format, without weight decay, and the
    master is rounded to bfloat16 after every step. All steps have one sign and the size of the rate.

    Parameters
    ----------
    weights : finite bfloat16 values to start from; rate : AdamW's learning rate, > 0.
    towards : +1 or −1, the sign of each weight's path.
    master : float64 (exact for these sums), float32 or bfloat16.
    limit : steps after which to stop.

    Returns
    -------
    int64 tensor in [1, limit], 0 where the stored weight is still the same after `limit` steps.

    Raises
    ------
    GeometryError : weights are not finite bfloat16; rate or limit is not positive.

    **Source** Loshchilov and Hutter (2019), AdamW; the question is Zhu et al.'s (2025), Cor. 3.6.
    """
    require_finite_bf16(weights, "weights")
    if rate <= 0 or limit < 1:
        raise GeometryError("no path to follow", expected="rate > 0, limit ≥ 1", found=(rate, limit))
    moving = torch.nn.Parameter(weights.to(master))
    moving.grad = -towards.to(master)
    optimiser = torch.optim.AdamW([moving], lr=float(rate), weight_decay=0.0)
    start, seen = weights.clone(), torch.zeros_like(weights, dtype=torch.int64)
    for step in range(1, limit + 1):
        optimiser.step()
        left = (to_bf16(moving.detach()) != start) & (seen == 0)
        seen[left] = step
        if bool(seen.all()):
            break
    return seen
