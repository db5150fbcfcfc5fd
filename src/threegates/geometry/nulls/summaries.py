"""How an observed statistic stands among the draws of a null."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import Real


def p_value(observed: Real, draws: Sequence[Real] | np.ndarray, tail: str = "upper") -> float:
    """Monte-Carlo p-value of an observed statistic among null draws.

    upper: (1 + #{draw ≥ observed})/(n + 1); two-sided: min(1, 2 · the smaller of both tails). Under the null
    P(p ≤ α) ≤ α exactly; the smallest possible value is 1/(n + 1), twice that for two-sided.

    Returns
    -------
    float in (0, 1]; NaN where the observed value or a draw is NaN.

    Raises
    ------
    GeometryError : no draw, or an unknown tail.

    **Source** Phipson and Smyth (2010), eq. 2; Davison and Hinkley (1997), §4.2.
    """
    values = np.asarray(draws, dtype=np.float64)
    if not values.size or tail not in ("upper", "two-sided"):
        raise GeometryError(
            "no p-value",
            expected="draws, and tail 'upper' or 'two-sided'",
            found=f"{values.size} draws, tail {tail!r}",
        )
    if math.isnan(observed) or np.isnan(values).any():
        return math.nan
    upper = (1 + int((values >= observed).sum())) / (values.size + 1)
    lower = (1 + int((values <= observed).sum())) / (values.size + 1)
    return upper if tail == "upper" else min(1.0, 2 * min(upper, lower))


@dataclass(frozen=True)
class NullSummary:
    """A null's draws in short: mean, sd, 2.5 % and 97.5 % quantiles; the observed value's p and z; draws."""

    mean: float
    sd: float
    low: float
    high: float
    p: float
    z: float
    draws: int


def summarise(observed: Real, draws: Sequence[Real] | np.ndarray, tail: str = "upper") -> NullSummary:
    """Set an observed statistic against its null draws.

    z = (observed − mean)/sd, sd with n − 1; NaN where fewer than two draws or sd = 0.

    Raises
    ------
    GeometryError : as `p_value`.

    **Source** as `p_value`.
    """
    values = np.asarray(draws, dtype=np.float64)
    p = p_value(observed, values, tail)
    sd = float(values.std(ddof=1)) if values.size > 1 else math.nan
    low, high = np.quantile(values, [0.025, 0.975])
    mean = float(values.mean())
    z = (observed - mean) / sd if sd > 0 else math.nan
    return NullSummary(mean, sd, float(low), float(high), p, z, values.size)
