"""How far two masks of null 1a agree whose bases differ, such as one base in two frames.

On one base, what a weight meets is a matter of its code. On two, it is one of a pair of codes, and there are
too many of those to count: probabilities are looked up weight by weight instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Shaped
from torch import Tensor

from threegates.geometry.laws.lines import at_weights
from threegates.geometry.laws.masks import Seen
from threegates.geometry.laws.stopped import inclusion


@dataclass(frozen=True)
class Chances:
    """Null 1a at every weight of a base, at the scale of the count.

    inclusion : probability that the weight changes, to second order. p, slope : to first order, and λ, by how
    much p grows with log s; see `threegates.geometry.laws.noise.Rates`. changed : the count.
    """

    inclusion: Float64[Tensor, "m n"]
    p: Float64[Tensor, "m n"]
    slope: Float64[Tensor, "m n"]
    changed: int


def chances_at_count(seen: Seen, base: Shaped[Tensor, "m n"]) -> Chances:
    """Chances of null 1a, matched to a mask that is seen on a base.

    Parameters
    ----------
    seen : the mask on `base`, a finite bfloat16 matrix.

    **Source** this study's null 1a.
    """
    counts = seen.noise.counts
    if seen.changed in (0, seen.codes.size):
        sure = np.full_like(counts, float(seen.changed > 0))
        functions = np.stack([sure, sure, np.zeros_like(counts)])
    else:
        rates = seen.noise.rates(seen.scale_of_count)
        functions = np.stack([inclusion(seen.noise, rates), rates.p, rates.slope])
    pi, p, slope = at_weights(base, seen.codes, functions)
    return Chances(pi, p, slope, seen.changed)


def intersection_moments(one: Chances, other: Chances) -> tuple[float, float]:
    """Mean and variance of |M₁ ∩ M₂|, for two independent masks of null 1a on bases of one shape.

    Mean Σ π₁π₂ with the inclusion probabilities π; variance Σ Var(m₁m₂ − r₁m₁ − r₂m₂) with r₁ = Σλ₁p₂/Σλ₁.

    **Source** this study's null 1a; `threegates.geometry.laws.two_masks.stopped_intersection` on one base.
    """
    mean = float((one.inclusion * other.inclusion).sum())
    r1, r2 = _pull(one, other.p), _pull(other, one.p)
    both, rest1, rest2 = one.p * other.p, one.p * (1 - other.p), other.p * (1 - one.p)
    first = (1 - r1 - r2) * both - r1 * rest1 - r2 * rest2
    second = (1 - r1 - r2) ** 2 * both + r1**2 * rest1 + r2**2 * rest2
    return mean, max(float((second - first**2).sum()), 0.0)


def _pull(own: Chances, chance: Float64[Tensor, "m n"]) -> float:
    """By how much the intersection grows with the mask's count, whose last changes come at the rates λ."""
    whole = float(own.slope.sum())
    return float((own.slope * chance).sum()) / whole if whole and math.isfinite(whole) else 0.0
