"""Estimates: a value with its confidence interval over independent units, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval over `n` units; without an interval, the reason why.

    `error` is the standard error of the mean, on the scale that it was averaged on: of the values themselves,
    or of their logarithms, where `value` is a geometric mean. An exact value has the error zero. `unmet` says
    which assumption of a theorem is not met, so that its bound says nothing whatever the number is;
    `undecided` says why what was measured decides nothing, though it is not missing.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    reason: str = ""
    error: float = math.nan
    scale: Literal["linear", "log"] = "linear"
    unmet: str = ""
    undecided: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether a rule can be applied to it."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def noted(estimate: Estimate, *notes: str) -> Estimate:
    """The estimate with notes behind the reason that it has, if any."""
    return replace(estimate, reason="; ".join(filter(None, [estimate.reason, *notes])))


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
    statistic: Callable[[set], float], sizes: Mapping, unit: str, confidence: float
) -> Estimate:
    """Leave-one-out estimate and interval of a statistic of a set of units, with t quantiles.

    The value θ̂ is the statistic of all units. Of g units of sizes m_j, n in all, with h_j = n/m_j, the
    pseudo-values are h_j θ̂ − (h_j − 1) θ̂₍₋ⱼ₎; their squared distances from θ̂_J = g θ̂ − Σ (1 − m_j/n) θ̂₍₋ⱼ₎
    count by 1/(h_j − 1). Units of one size give Tukey's jackknife.

    Parameters
    ----------
    sizes : how many runs each unit holds.

    **Source** Tukey (1958); Busing, Meijer and van der Leeden (1999), delete-m_j jackknife for unequal m.
    """
    names = sorted(sizes)
    h = sum(sizes.values()) / np.array([sizes[name] for name in names])
    whole = statistic(set(names))
    left_out = np.array([statistic(set(names) - {one}) for one in names])
    centre = len(names) * whole - float(((1 - 1 / h) * left_out).sum())
    pseudo = h * whole - (h - 1) * left_out
    error = math.sqrt(float(((pseudo - centre) ** 2 / (h - 1)).mean()))
    return _around(whole, error, len(names), unit, confidence)


def _around(value: float, error: float, n: int, unit: str, confidence: float) -> Estimate:
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    return Estimate(value, value - half, value + half, n, unit, error=error)


def exponential(log: Estimate) -> Estimate:
    """Back from the mean of logarithms to a geometric mean."""
    value, low, high = (math.exp(x) for x in (log.value, log.low, log.high))
    return replace(log, value=value, low=low, high=high, scale="log")


def t_interval(values: Sequence[float] | pd.Series, confidence: float = 0.95) -> tuple[float, float, float]:
    """Give mean, low and high of Student's t interval; the bounds are NaN for fewer than two values."""
    found = t_estimate(values, "values", confidence)
    return found.value, found.low, found.high
