"""The law of one statistic under a null, and where an observed value stands in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from threegates.geometry.nulls.noise import Real
from threegates.geometry.nulls.summaries import p_value
from threegates.geometry.principal import NORMAL_975

#: How a law was found: computed; from draws; or computed where too few weights change for it to be exact.
LAW, DRAWN, FIRST_ORDER = "law", "drawn", "first order"
_LN10 = math.log(10)


@dataclass(frozen=True)
class Standing:
    """A null in short: mean, sd, 2.5 % and 97.5 % quantiles; the observed value's z and p.

    p = 10 ** log10_p, which may underflow to 0 where log10_p does not. how : as of `Law`.
    """

    mean: Real
    sd: Real
    low: Real
    high: Real
    z: Real
    log10_p: Real
    how: str

    @property
    def p(self) -> float:
        """The p-value itself."""
        return 10.0**self.log10_p if not math.isnan(self.log10_p) else math.nan


@dataclass(frozen=True)
class Law:
    """The law of a statistic: mean, standard deviation, 2.5 % and 97.5 % quantiles, and tails.

    tail : natural logarithms of P(X ≥ x) and P(X ≤ x), each with the point x itself; NaN where unknown.
    how : 'law', 'drawn' or 'first order'.
    """

    mean: Real
    sd: Real
    low: Real
    high: Real
    tail: Callable[[float], tuple[float, float]] = field(repr=False)
    how: str = LAW

    def against(self, observed: Real, tail: str = "upper") -> Standing:
        """Where an observed value stands, by its 'upper' or 'two-sided' tail (twice the smaller, at most 1).

        z is NaN where the law has no spread.

        **Source** as `threegates.geometry.nulls.summaries.p_value`, with probabilities in place of shares.
        """
        if math.isnan(observed):
            return Standing(self.mean, self.sd, self.low, self.high, math.nan, math.nan, self.how)
        upper, lower = self.tail(observed)
        log_p = upper if tail == "upper" else min(0.0, math.log(2) + min(upper, lower))
        z = (observed - self.mean) / self.sd if self.sd > 0 else math.nan
        return Standing(self.mean, self.sd, self.low, self.high, z, min(log_p, 0.0) / _LN10, self.how)


def certain(value: Real) -> Law:
    """The law of a statistic that has one value, whatever is drawn."""

    def tail(x: Real) -> tuple[float, float]:
        near = math.isclose(x, value, rel_tol=1e-12, abs_tol=1e-300)
        return (0.0 if near or x < value else -math.inf), (0.0 if near or x > value else -math.inf)

    return Law(value, 0.0, value, value, tail)


def unknown() -> Law:
    """The law of a statistic that is not defined, such as the overlap of an empty mask."""
    return Law(math.nan, math.nan, math.nan, math.nan, lambda _: (math.nan, math.nan))


def near_normal(mean: Real, sd: Real, skewness: Real, tail: Callable[[float], tuple[float, float]]) -> Law:
    """A law whose quantiles are the normal's, corrected for skewness by Cornish and Fisher's first term.

    **Source** Cornish and Fisher (1938).
    """
    bow = skewness / 6 * (NORMAL_975**2 - 1)
    return Law(mean, sd, mean + sd * (bow - NORMAL_975), mean + sd * (bow + NORMAL_975), tail)


def of_draws(values: np.ndarray) -> Law:
    """The law that draws stand for; tails are shares of them, with one added to both sides of the fraction.

    **Source** Phipson and Smyth (2010).
    """
    drawn = np.asarray(values, dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return unknown()

    def tail(x: Real) -> tuple[float, float]:
        return math.log(p_value(x, drawn)), math.log(p_value(-x, -drawn))

    low, high = np.quantile(drawn, [0.025, 0.975])
    sd = float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
    return Law(float(drawn.mean()), sd, float(low), float(high), tail, DRAWN)
