"""Tails of sums of independent indicators, far out, by saddlepoint approximations.

The normal law fails beyond some six standard deviations, where this study's p-values lie. A saddlepoint
approximation keeps a relative error of O(1/variance) however far out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import log_ndtr

from threegates.geometry.nulls.noise import Real

# Below it w and u differ by less than their own rounding, and the normal tail is the limit.
NEAR = 1e-4
_STEPS = 200


def log_tail(w: Real, u: Real) -> float:
    """log P of the upper tail from the signed root w of the log-likelihood ratio and its companion u.

    Φ(−r*) with r* = w + log(u/w)/w.

    **Source** Barndorff-Nielsen (1986); Lugannani and Rice (1980).
    """
    if abs(w) < NEAR or u / w <= 0:
        return float(log_ndtr(-w))
    return float(log_ndtr(-(w + math.log(u / w) / w)))


def sum_tail(counts: np.ndarray, p: np.ndarray, step: np.ndarray, y: Real) -> float:
    """log P(Σ_g step_g B_g ≥ y) for independent B_g ~ Binomial(counts_g, p_g).

    The sum is taken to be continuous: steps share no lattice.

    Parameters
    ----------
    counts, p, step : (G,) float64, counts ≥ 0, p in [0, 1].

    Returns
    -------
    natural logarithm, −∞ where the sum cannot get that far.

    **Source** Lugannani and Rice (1980), in the form of Barndorff-Nielsen (1986).
    """
    certain = float(counts @ (step * (p >= 1)))
    live = (counts > 0) & (p > 0) & (p < 1) & (step != 0)
    counts, p, step, y = counts[live], p[live], step[live], y - certain
    least, most = (float(counts @ np.minimum(step, 0.0)), float(counts @ np.maximum(step, 0.0)))
    margin = 1e-12 * max(abs(least), abs(most), abs(y))
    if y <= least + margin:
        return 0.0
    if y > most + margin:
        return -math.inf
    if y >= most - margin:
        return float(counts[step > 0] @ np.log(p[step > 0]) + counts[step < 0] @ np.log1p(-p[step < 0]))
    t = increasing_root(lambda t: _mean_and_variance(counts, p, step, t), y)
    _, variance = _mean_and_variance(counts, p, step, t)
    exponent = t * y - float(counts @ log_mgf(p, t * step))
    return log_tail(math.copysign(math.sqrt(max(2 * exponent, 0.0)), t), t * math.sqrt(variance))


def log_mgf(p: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """log(1 − p + p e^θ) for p in (0, 1), without overflow, and exact where p is tiny and θ large."""
    return np.logaddexp(np.log1p(-p), np.log(p) + theta)


def tilted(p: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """p e^θ/(1 − p + p e^θ), the tilted probability."""
    with np.errstate(over="ignore", divide="ignore"):
        return 1 / (1 + (1 - p) / p * np.exp(-theta))


def _mean_and_variance(counts: np.ndarray, p: np.ndarray, step: np.ndarray, t: Real) -> tuple[float, float]:
    share = tilted(p, t * step)
    return float(counts @ (step * share)), float(counts @ (step**2 * share * (1 - share)))


def increasing_root(value_and_slope: Callable[[float], tuple[float, float]], target: Real) -> float:
    """t with value(t) = target, for an increasing function that is given with its slope; from t = 0.

    Newton's steps, held inside the bracket that is known, and doubled while there is none on one side.
    """
    low, high, t, reach = -math.inf, math.inf, 0.0, None
    for _ in range(_STEPS):
        value, slope = value_and_slope(t)
        if value < target:
            low = t
        else:
            high = t
        step = (target - value) / slope if slope > 0 else math.copysign(math.inf, target - value)
        reach = reach or max(abs(step), 1e-12)
        following = t + step if abs(step) <= 2 * reach else t + math.copysign(2 * reach, step)
        reach *= 2
        if not low < following < high:
            following = (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else t
        if abs(following - t) <= 1e-13 * abs(t) or following == t:
            return following
        t = following
    return t


#: Of a point and a target: the gradient of the exponent there, and what gives its Hessian.
Derivatives = Callable[[np.ndarray, float], tuple[np.ndarray, Callable[[], np.ndarray]]]


def saddle(
    derivatives: Derivatives,
    start: np.ndarray,
    mean: Real,
    x: Real,
    *,
    wanted: Real,
    longest: Real,
    steps: int,
) -> np.ndarray | None:
    """The point at which all derivatives vanish, by damped Newton steps along a path of targets.

    The path leads from the mean, whose saddle is `start`, to x, in steps that are halved where one fails.

    Parameters
    ----------
    wanted : largest entry of a gradient that counts as none; longest : largest entry of a step.
    steps : tried for each target.

    Returns
    -------
    the point, or None where the path ends before x.

    **Source** numerical continuation, Allgower and Georg (2003), ch. 2.
    """
    point, done, step = start, 0.0, 1.0
    while done < 1.0:
        towards = min(1.0, done + step)
        found = _newton(derivatives, point, mean + towards * (x - mean), wanted, longest, steps)
        if found is None:
            step /= 2
            if step < 1e-3:
                return None
            continue
        point, done = found, towards
    return point


def _newton(
    derivatives: Derivatives, point: np.ndarray, x: Real, wanted: Real, longest: Real, steps: int
) -> np.ndarray | None:
    for _ in range(steps):
        gradient, hessian = derivatives(point, x)
        if np.abs(gradient).max() <= wanted:
            return point
        try:
            step = np.linalg.solve(hessian(), -gradient)
        except np.linalg.LinAlgError:
            return None
        largest = float(np.abs(step).max())
        if not math.isfinite(largest):
            return None
        point = point + step * min(1.0, longest / largest)
    return None
