"""Estimates: a value with its confidence interval over independent units, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval over `n` units; without an interval, the reason why.

    `error` is the standard error of the mean, on the scale that it was averaged on: of the values themselves,
    or of their logarithms, where `value` is a geometric mean. An exact value has the error zero.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    reason: str = ""
    error: float = math.nan
    scale: Literal["linear", "log"] = "linear"

    @property
    def has_interval(self) -> bool:
        """Whether a rule can be applied to it."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def missing(reason: str, unit: str = "runs") -> Estimate:
    """An estimate that the tables cannot give."""
    return Estimate(math.nan, math.nan, math.nan, 0, unit, reason)


def exact(value: float, n: int, unit: str) -> Estimate:
    """A number that was computed, not sampled: its interval is a point; `n` counts what it is about."""
    return Estimate(value, value, value, n, unit, error=0.0)


def t_estimate(values: Iterable[float], unit: str, confidence: float) -> Estimate:
    """Mean of independent values and Student's interval; one value has no interval.

    **Source** Student (1908), *The probable error of a mean*.
    """
    x = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if len(x) == 0:
        return missing(f"no {unit} to estimate it from", unit)
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, math.nan, 1, unit, f"one of the {unit} gives no interval")
    error = float(x.std(ddof=1) / math.sqrt(len(x)))
    return _around(float(x.mean()), error, len(x), unit, confidence)


def jackknife_estimate(
    statistic: Callable[[set], float], units: set, unit: str, confidence: float
) -> Estimate:
    """Leave-one-out estimate and interval of a statistic of a set of units, with t quantiles.

    The value is the statistic of all units; the spread is that of the pseudo-values
    n θ̂ − (n − 1) θ̂₍₋ᵢ₎.

    **Source** Tukey (1958), *Bias and confidence in not quite large samples*.
    """
    n, whole = len(units), statistic(units)
    left_out = np.array([statistic(units - {one}) for one in sorted(units)])
    pseudo = n * whole - (n - 1) * left_out
    return _around(whole, float(pseudo.std(ddof=1) / math.sqrt(n)), n, unit, confidence)


def _around(value: float, error: float, n: int, unit: str, confidence: float) -> Estimate:
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Estimate(value, value - half, value + half, n, unit, error=error)


def exponential(log: Estimate) -> Estimate:
    """Back from the mean of logarithms to a geometric mean."""
    value, low, high = (math.exp(x) for x in (log.value, log.low, log.high))
    return replace(log, value=value, low=low, high=high, scale="log")
