"""Laws of row and column dispersion: quadratic statistics of counts along lines, under every null of masks.

A line's count is S_r = μ_r + ε_r with covariances C = diag(a) + U M Uᵀ: its own variance, less what the null
holds fixed (the count, the strata's counts, or the common scale). Q = Σ (S_r − S̄)² has the mean
Σ δ² + tr C, δ = μ − μ̄, and the variance Σ a ℓ² + 2 tr C² + Σ (κ₄ + 2 ℓ κ₃). ℓ is the slope 2 δ of Q in ε,
less what moves with the count alone: also the quadratic part grows with it, by k = Σ λ(1 − 2p)/Λ a change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from threegates.geometry.laws.law import Law, certain, near_normal, unknown
from threegates.geometry.laws.noise import Noise
from threegates.geometry.laws.saddlepoint import increasing_root, log_tail
from threegates.geometry.laws.stopped import inclusion
from threegates.geometry.nulls.noise import Real

# Lines whose squares are held at a time, and products of three sides up to which a Gram matrix is of float64.
_LINES = 1 << 10
_SMALL_WORK = 1 << 28
# Products beyond which neighbouring strata are joined for one, and how many.
_LARGE_WORK, _JOINED = 1 << 33, 4
# Lines that are widened to float64 at a time.
_WIDENED = 1 << 11


@dataclass(frozen=True)
class LineCounts:
    """First and second order of the counts along m lines of `length` entries each.

    mean, own : (m,) μ and a; third, fourth : (m,) cumulants κ₃ and κ₄.
    shared : U (m, R); weights : M (R, R), or (R,) where it is diagonal, as with the many strata of a null.
    share : (m,) Λ_r/Λ where a scale is stopped at the count; growth : k.
    held : Σ_b V_b (1 − 2 p_b)² where strata hold their counts: what that takes off the variance of Q.
    """

    length: int
    mean: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    weights: np.ndarray
    third: np.ndarray
    fourth: np.ndarray
    share: np.ndarray | None = None
    growth: Real = 0.0
    held: Real | None = None

    def variance_of(self, step: np.ndarray) -> float:
        """Variance of Σ step_r S_r."""
        along = _along(self.shared, step)
        weighted = self.weights * along if self.weights.ndim == 1 else self.weights @ along
        return float(self.own @ step**2 + along @ weighted)

    def trace(self) -> float:
        """tr C."""
        if self.weights.ndim == 1:
            return float(self.own.sum() + _squares(self.shared, self.weights).sum())
        return float(self.own.sum() + (self.weights * (self.shared.T @ self.shared)).sum())

    def trace_of_square(self) -> float:
        """tr C²."""
        if self.weights.ndim == 1:
            crossed = float(self.own @ _squares(self.shared, self.weights))
            return float((self.own**2).sum() + 2 * crossed + _norm_of_product(self.shared, self.weights))
        inner = self.weights @ (self.shared.T @ self.shared)
        weighted = self.weights @ (self.shared.T @ (self.own[:, None] * self.shared))
        return float((self.own**2).sum() + 2 * np.trace(weighted) + (inner * inner.T).sum())


def _along(lines: np.ndarray, step: np.ndarray) -> np.ndarray:
    """(R,) Uᵀ step in float64, by blocks of lines: all of U in float64 would be twice as large as it is."""
    starts = range(_WIDENED, len(lines), _WIDENED)
    parts = zip(*(np.split(one, starts) for one in (lines, step)), strict=True)
    return np.sum([part.T @ of_part for part, of_part in parts], axis=0)


def _squares(lines: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m,) diagonal of U diag(w) Uᵀ, by blocks of lines: squares of all of U would be as large as U."""
    parts = np.split(lines, range(_LINES, len(lines), _LINES))
    return np.concatenate([np.square(part, dtype=np.float64) @ weights for part in parts])


def _norm_of_product(lines: np.ndarray, weights: np.ndarray) -> float:
    """‖U diag(w) Uᵀ‖² for weights of one sign, from the smaller of both Gram matrices.

    It is of the order of Σ a²/m. In a large tensor float32 is enough for it, and in a very large one joined
    strata; in a small one, where a count may be certain, what is left of tr C² has to vanish with it.
    """
    if lines.size * min(lines.shape) > _LARGE_WORK:
        lines, weights = _joined(lines, weights)
    kind = np.float32 if lines.size * min(lines.shape) > _SMALL_WORK else np.float64
    root = np.sqrt(np.abs(weights)).astype(kind)
    if len(lines) <= lines.shape[1]:
        scaled = lines.astype(kind) * root
        gram = scaled @ scaled.T
    else:
        gram = np.zeros((len(root), len(root)), dtype=kind)
        for part in np.split(lines, range(_LINES, len(lines), _LINES)):
            scaled = part.astype(kind) * root
            gram += scaled.T @ scaled
    return float(np.einsum("ij,ij->", gram, gram, dtype=np.float64))


def _joined(lines: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring strata as one, whose weight leaves Σ w s² as it is, s the entries of a stratum.

    Counts of neighbours are nearly proportional, so that of the norm some thousandths change, and of tr C²,
    of which it is some 1e-4 there, less than 1e-6.
    """
    starts = np.arange(0, len(weights), _JOINED)
    sizes = lines.sum(axis=0, dtype=np.float64)
    together = np.maximum(np.add.reduceat(sizes, starts), 1)
    return np.add.reduceat(lines, starts, axis=1), np.add.reduceat(weights * sizes**2, starts) / together**2


def functions_of_noise(noise: Noise, scale: Real, *, stopped: bool) -> np.ndarray:
    """(5, K) functions of the code, to be summed along lines: mean, v, κ₃, κ₄, λ; see `at_count`.

    stopped : whether the scale is stopped at a count, which moves the means a little.
    """
    rates = noise.rates(scale)
    mean = inclusion(noise, rates) if stopped else rates.p
    return np.stack([mean, *_cumulants(rates.p)[1:], rates.slope])


def _cumulants(p: np.ndarray) -> list[np.ndarray]:
    v = p * (1 - p)
    return [p, v, v * (1 - 2 * p), v * (1 - 6 * v)]


def growth(noise: Noise, scale: Real) -> float:
    """k = Σ λ(1 − 2p)/Λ: by how much the sum of variances grows with the count."""
    rates = noise.rates(scale)
    return float(noise.counts @ (rates.slope * (1 - 2 * rates.p))) / float(noise.counts @ rates.slope)


def at_count(sums: np.ndarray, length: int, growth: Real) -> LineCounts:
    """Null 1a: the scale is stopped at the count, C = diag(v) − g vᵀ − v gᵀ + V g gᵀ with g = Λ_r/Λ.

    sums : (m, 5) from `functions_of_noise` at the scale of the count; growth : from `growth` there.
    """
    mean, v, third, fourth, slope = sums.T
    share = slope / slope.sum()
    weights = np.array([[v.sum(), -1.0], [-1.0, 0.0]])
    return LineCounts(length, mean, v, np.stack([share, v], axis=1), weights, third, fourth, share, growth)


def at_scale(sums: np.ndarray, length: int) -> LineCounts:
    """Null 1b: independent lines, centred.

    sums : (m, 5) from `functions_of_noise` at the scale of the norm.
    """
    mean, v, third, fourth, _ = sums.T
    m = len(mean)
    weights = np.array([[v.sum() / m**2, -1 / m], [-1 / m, 0.0]])
    return LineCounts(length, mean, v, np.stack([np.ones(m), v], axis=1), weights, third, fourth)


def at_strata(of_lines: np.ndarray, sizes: np.ndarray, taken: np.ndarray, length: int) -> LineCounts:
    """Bernoulli (one stratum) and magnitude null: each stratum's count is held, C = diag(a) − H diag(f) Hᵀ.

    Parameters
    ----------
    of_lines : (m, B) entries of each stratum on each line; sizes : (B,) entries of the stratum; taken : (B,)
        changed ones among them.

    **Source** multivariate hypergeometric counts: Johnson, Kotz and Balakrishnan (1997), §39.2.
    """
    p = np.divide(taken, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    factor = p * (1 - p) / np.maximum(sizes - 1, 1)
    functions = np.stack([*_cumulants(p), factor * sizes], axis=1)
    parts = np.split(of_lines, range(_LINES, len(of_lines), _LINES))
    mean, _, third, fourth, own = np.concatenate([part.astype(np.float64) @ functions for part in parts]).T
    held = float(sizes @ (p * (1 - p) * (1 - 2 * p) ** 2))
    return LineCounts(length, mean, own, of_lines, -factor, third, fourth, held=held)


def line_dispersion(lines: LineCounts, *, fixed_count: bool) -> Law:
    """Law of Q/(m n p (1 − p)): the variance of ratios along m lines over the binomial one.

    Where the count is not fixed the density p is the draw's own, which the delta method takes off. The upper
    tail is that of a quadratic form in Gaussian counts, moved and stretched to the exact mean and variance.

    Parameters
    ----------
    fixed_count : whether the null holds the number of changed entries.

    Returns
    -------
    law; unknown where the expected density is 0 or 1.

    **Source** index of dispersion (Lexis 1877); Kuonen (1999) for tails of quadratic forms.
    """
    m, total = len(lines.mean), float(lines.mean.sum())
    size = m * lines.length
    density = total / size if size else math.nan
    if not 0 < density < 1:
        return unknown()
    away, unit = lines.mean - total / m, total * (1 - density)
    expected = float(away @ away) + lines.trace()
    # Without a fixed count the statistic divides by the draw's own density.
    pull = lines.growth if fixed_count else expected / unit * (1 - 2 * density)
    variance = 2 * lines.trace_of_square() + float(lines.fourth.sum()) + _linear(lines, away, pull)
    if variance <= 0:
        return certain(expected / unit)
    form = _Form(lines.own, away)
    sd = math.sqrt(variance)

    def tail(x: Real) -> tuple[float, float]:
        return form.log_tails((x * unit - expected) / sd)

    return near_normal(expected / unit, sd / unit, form.skewness(), tail)


def _linear(lines: LineCounts, away: np.ndarray, pull: Real) -> float:
    """What Q's slope in the counts adds to its variance."""
    if lines.held is not None:
        return lines.variance_of(2 * away) - float(lines.held)
    common = 0.0 if lines.share is None else float(lines.share @ away)
    step = 2 * (away - common) - pull
    return float(lines.own @ step**2 + 2 * (step @ lines.third))


@dataclass(frozen=True)
class _Form:
    """Σ (δ_r + ε_r)² for independent Gaussian ε_r of variances a_r."""

    variances: np.ndarray
    away: np.ndarray

    def cumulants(self) -> tuple[float, float, float]:
        """Mean, variance and third cumulant."""
        a, square = self.variances, self.away**2
        return (
            float((a + square).sum()),
            float((2 * a**2 + 4 * a * square).sum()),
            float((8 * a**3 + 24 * a**2 * square).sum()),
        )

    def skewness(self) -> float:
        """Third cumulant over the variance's power 3/2."""
        _, second, third = self.cumulants()
        return third / second**1.5 if second else 0.0

    def log_tails(self, z: Real) -> tuple[float, float]:
        """log P(≥) and log P(≤) at z standard deviations above the mean."""
        mean, variance, _ = self.cumulants()
        upper = self._log_upper(mean + z * math.sqrt(variance))
        return upper, math.log1p(-min(math.exp(upper), 1 - 1e-16)) if upper < -1e-16 else -math.inf

    def _log_upper(self, q: Real) -> float:
        if q <= 0:
            return 0.0
        s = increasing_root(self._log_mean_and_speed, math.log(q))
        t, left = self._tilt(s)
        _, variance = self._tilted(left)
        cumulant = -0.5 * np.log(left) + t * self.away**2 / left
        exponent = t * float(q) - float(cumulant.sum())
        return log_tail(math.copysign(math.sqrt(max(2 * exponent, 0.0)), t), t * math.sqrt(variance))

    def _tilt(self, s: Real) -> tuple[float, np.ndarray]:
        """t = (1 − e^−s)/2a_max and 1 − 2 t a, without cancellation; t keeps below its pole."""
        largest = float(self.variances.max())
        share = self.variances / largest
        return -math.expm1(-s) / (2 * largest), (1 - share) + share * math.exp(-s)

    def _tilted(self, left: np.ndarray) -> tuple[float, float]:
        """Mean and variance under the tilt."""
        a, square = self.variances, self.away**2
        mean = float((a / left + square / left**2).sum())
        return mean, float((2 * (a / left) ** 2 + 4 * a * square / left**3).sum())

    def _log_mean_and_speed(self, s: Real) -> tuple[float, float]:
        """The mean's logarithm, which is nearly a straight line in s, and its slope."""
        mean, variance = self._tilted(self._tilt(s)[1])
        return math.log(mean), variance * math.exp(-s) / (2 * float(self.variances.max()) * mean)
