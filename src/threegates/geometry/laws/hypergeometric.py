"""Sums of hypergeometric counts: masks of fixed counts within strata, laid on a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln

from threegates.geometry.laws.law import Law, certain, near_normal
from threegates.geometry.laws.saddlepoint import increasing_root, log_tail
from threegates.geometry.nulls.noise import Real

Counts = np.ndarray | Sequence[int]
#: Up to so many values of the sum its law is convolved, exactly.
EXACT = 1 << 12
# Products of masses below it have lost their digits.
_UNDERFLOW = 1e-250
_FAR = 12.0
_TINY = float(np.finfo(np.float64).tiny)


def sum_of_hypergeometrics(sizes: Counts, marked: Counts, taken: Counts) -> Law:
    """Law of Σ_b X_b, X_b the marked ones among `taken_b` of `sizes_b` that are chosen without replacement.

    Mean Σ taken marked/size, variance Σ taken (marked/size)(1 − marked/size)(size − taken)/(size − 1). Tails
    are exact for one stratum and for sums of few values, else a double saddlepoint approximation given the
    strata's counts: relative error below 1 % where the variance exceeds 100.

    Parameters
    ----------
    sizes, marked, taken : (B,) counts, marked and taken in [0, sizes].

    **Source** Johnson, Kemp and Kotz (2005), §6.3; Skovgaard (1987); Cornfield (1956) for the tilted means.
    """
    n, k, d = (np.asarray(x, dtype=np.float64) for x in (sizes, marked, taken))
    fixed = (k == 0) | (k == n) | (d == 0) | (d == n)
    known = float(np.divide(k * d, n, out=np.zeros_like(n), where=n > 0)[fixed].sum())
    if fixed.all():
        return certain(round(known))
    strata = _Strata(n[~fixed], k[~fixed], d[~fixed])
    mean, variance, third = strata.moments()

    def tail(x: Real) -> tuple[float, float]:
        upper = strata.log_upper(math.ceil(x - known - 1e-9))
        # The unmarked ones among the taken are hypergeometric too, and few where the marked are many.
        beyond = math.ceil(float(strata.taken.sum()) - (x - known) - 1e-9)
        return upper, strata.mirrored().log_upper(beyond)

    return near_normal(known + mean, math.sqrt(variance), third / variance**1.5, tail)


class _Strata:
    """Strata in which both marked and taken leave something to chance."""

    def __init__(self, sizes: np.ndarray, marked: np.ndarray, taken: np.ndarray) -> None:
        self.sizes, self.marked, self.taken = sizes, marked, taken
        self.least, self.most = np.maximum(0, marked + taken - sizes), np.minimum(marked, taken)

    def mirrored(self) -> _Strata:
        """The same with marked and unmarked in each other's place."""
        return _Strata(self.sizes, self.sizes - self.marked, self.taken)

    def moments(self) -> tuple[float, float, float]:
        """Mean, variance and third central moment of the sum."""
        n, k, d = self.sizes, self.marked, self.taken
        share = k / n
        variance = d * share * (1 - share) * (n - d) / (n - 1)
        skewed = (1 - 2 * share) * (n - 2 * d) / np.maximum(n - 2, 1)
        return float((d * share).sum()), float(variance.sum()), float((variance * skewed).sum())

    def log_upper(self, x: int) -> float:
        """log P(Σ X ≥ x)."""
        if x <= self.least.sum():
            return 0.0
        if x > self.most.sum():
            return -math.inf
        if len(self.sizes) == 1:
            return self._of_one(x)
        if (self.most - self.least).sum() <= EXACT:
            total = math.fsum(self._convolved()[x - int(self.least.sum()) :])
            if total > _UNDERFLOW:
                return math.log(total)
        return self._by_saddlepoint(x)

    def _of_one(self, x: int) -> float:
        """The same of a single stratum, exactly: a sum over the lesser tail."""
        if x > self.moments()[0]:
            return _log_sum_exp(self._log_masses(0, x))
        below = self.mirrored()._log_masses(0, int(self.taken[0]) - x + 1)
        return math.log1p(-math.exp(_log_sum_exp(below))) if len(below) else 0.0

    def _log_masses(self, b: int, start: int | None = None) -> np.ndarray:
        """log P(X_b = i) for every i, or from a `start` beyond the mean for as long as it adds anything."""
        n, k, d = (float(one[b]) for one in (self.sizes, self.marked, self.taken))
        first, last = int(self.least[b]), int(self.most[b])
        if start is not None:
            sd = math.sqrt(self.moments()[1])
            first, last = start, min(last, start + int(_FAR * sd + _FAR))
        i = np.arange(first, last + 1, dtype=np.float64)
        return _log_choose(k, i) + _log_choose(n - k, d - i) - _log_choose(n, np.array([d]))

    def _convolved(self) -> np.ndarray:
        """P(Σ X = least + i) for every i."""
        masses = np.ones(1)
        for b in range(len(self.sizes)):
            masses = np.convolve(masses, np.exp(self._log_masses(b)))
        return masses

    def _shares(self, t: Real) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities to be taken, of the marked and of the others, tilted by t at the strata's counts.

        The odds of the marked are e^t times the others'; both together give the count: a quadratic.
        """
        n, k, d = self.sizes, self.marked, self.taken
        odds = math.exp(t)
        if abs(math.expm1(t)) < 1e-8:
            share = d / n
            return share, share
        b = (k + d) * odds + (n - k - d)
        root = np.sqrt(np.maximum(b * b - 4 * (odds - 1) * odds * k * d, 0.0))
        mean = 2 * odds * k * d / (b + root)
        return mean / k, (d - mean) / (n - k)

    def _tilted(self, t: Real) -> tuple[float, float]:
        """Mean and variance of the sum under the tilt."""
        inside, outside = self._shares(t)
        return float(self.marked @ inside), float(self._variances(inside, outside).sum())

    def _variances(self, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
        free = self.marked * inside * (1 - inside)
        rest = (self.sizes - self.marked) * outside * (1 - outside)
        return free * rest / np.maximum(free + rest, _TINY)

    def _by_saddlepoint(self, x: int) -> float:
        if x >= self.most.sum():
            return float(sum(self._log_masses(b, int(self.most[b]))[0] for b in range(len(self.sizes))))
        t = increasing_root(self._tilted, float(x))
        inside, outside = self._shares(t)
        share = self.taken / self.sizes
        rest = self.sizes - self.marked
        exponent = float(self.marked @ _divergence(inside, share) + rest @ _divergence(outside, share))
        spread = self.marked * inside * (1 - inside) + rest * outside * (1 - outside)
        before = self.sizes * share * (1 - share)
        # At the ends of a stratum nothing is left to chance, and its factor tells nothing.
        factor = 0.5 * float(np.log(np.maximum(spread, _TINY) / before).sum())
        variance = float(self._variances(inside, outside).sum())
        w = math.copysign(math.sqrt(max(2 * exponent, 0.0)), t)
        return log_tail(w, -math.expm1(-t) * math.sqrt(variance) * math.exp(factor))


def _divergence(share: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Kullback–Leibler divergence of Bernoulli(share) from Bernoulli(before)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        gained = np.where(share > 0, share * np.log(share / before), 0.0)
        return gained + np.where(share < 1, (1 - share) * np.log((1 - share) / (1 - before)), 0.0)


def _log_choose(n: Real, k: np.ndarray) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _log_sum_exp(logs: np.ndarray) -> float:
    top = float(logs.max())
    return top + math.log(float(np.exp(logs - top).sum()))
