"""Laws of how far two masks agree, both of one null or one of them observed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from threegates.geometry.laws.law import Law, certain, near_normal, unknown
from threegates.geometry.laws.noise import Noise
from threegates.geometry.laws.saddlepoint import increasing_root, log_tail, saddle
from threegates.geometry.laws.stopped import CERTAIN, inclusion
from threegates.geometry.nulls.noise import Real


def jaccard_of_intersection(both: Law, first: int, second: int) -> Law:
    """Law of J = X/(n₁ + n₂ − X), X = |M₁ ∩ M₂|, for masks of fixed counts: J rises with X.

    **Source** Jaccard (1912); second-order delta method for the mean.
    """
    total = first + second
    if not total:
        return unknown()

    def jaccard(x: Real) -> float:
        return x / (total - x) if total > x else math.nan

    steep = total / (total - both.mean) ** 2
    bow = steep / (total - both.mean) * both.sd**2
    mean = jaccard(both.mean) + bow
    return Law(
        mean,
        steep * both.sd,
        jaccard(both.low),
        jaccard(both.high),
        lambda j: both.tail(total * j / (1 + j)),
        both.how,
    )


def stopped_intersection(noise: Noise, changed: tuple[int, int]) -> Law:
    """Law of |M₁ ∩ M₂| for two independent masks of null 1a, of given counts, on one base.

    Mean Σ h p₁p₂, variance Σ h Var(m₁m₂ − r₁m₁ − r₂m₂) with r₁ = Σλ₁p₂/Λ₁.

    **Source** this study's null 1a; Skovgaard (1987).
    """
    scales = [noise.scale_of_count(one) for one in changed]
    first, second = (noise.rates(scale) for scale in scales)
    h = noise.counts
    r1 = float(h @ (first.slope * second.p)) / float(h @ first.slope)
    r2 = float(h @ (second.slope * first.p)) / float(h @ second.slope)
    p, q = first.p, second.p
    outcomes = ((p * q, 1 - r1 - r2), (p * (1 - q), -r1), ((1 - p) * q, -r2))
    _, variance, third = _moments(h, outcomes)
    mean = float(h @ (inclusion(noise, first) * inclusion(noise, second)))
    if variance < CERTAIN:
        return certain(round(mean))
    sd, logs = math.sqrt(variance), np.log(np.array(scales))

    def tail(x: Real) -> tuple[float, float]:
        upper = _TwoStops(noise, changed, logs).log_upper(math.ceil(x - 1e-9))
        return upper, _TwoStops(noise, changed, logs).log_lower(math.floor(x + 1e-9))

    return near_normal(mean, sd, third / sd**3, tail)


def _moments(
    counts: np.ndarray, outcomes: tuple[tuple[np.ndarray, float], ...]
) -> tuple[float, float, float]:
    """Mean, variance and third central moment of sums of values with probabilities; what is left has 0."""
    one = sum((p * x for p, x in outcomes), np.zeros_like(counts))
    two = sum((p * x**2 for p, x in outcomes), np.zeros_like(counts))
    three = sum((p * x**3 for p, x in outcomes), np.zeros_like(counts))
    central = three - 3 * one * two + 2 * one**3
    return float(counts @ one), float(counts @ (two - one**2)), float(counts @ central)


class _TwoStops:
    """Saddle points in (t, z₁, z₂, τ₁, τ₂); see `stopped` for one mask."""

    def __init__(self, noise: Noise, changed: tuple[int, int], logs: np.ndarray) -> None:
        self.noise, self.changed = noise, np.array(changed, dtype=float)
        self.start = np.array([0.0, 0.0, 0.0, *logs])

    def log_upper(self, x: Real) -> float:
        """log P(X ≥ x)."""
        return self._log_tail(x, 1.0)

    def log_lower(self, x: Real) -> float:
        """log P(X ≤ x)."""
        return self._log_tail(x, -1.0)

    def _log_tail(self, x: Real, side: Real) -> float:
        least, most = max(0.0, float(self.changed.sum()) - self.noise.size), float(self.changed.min())
        if (side > 0 and x <= least) or (side < 0 and x >= most):
            return 0.0
        if x > most or x < least:
            return -math.inf
        point = self._saddle(min(max(x, least + 0.25), most - 0.25))
        if point is None:
            return math.nan
        _, value, last = self._gradient(point, x)
        spread = float(np.linalg.det(self._hessian(point, x)))
        if spread <= 0:
            return math.nan
        t = side * point[0]
        w = math.copysign(math.sqrt(max(-2 * value, 0.0)), t)
        return log_tail(w, -math.expm1(-t) * math.sqrt(spread) / last)

    def _saddle(self, x: Real) -> np.ndarray | None:
        """(t, z₁, z₂, τ₁, τ₂) at which all derivatives vanish."""
        mean = self._gradient(self.start, 0.0)[0][0]
        wanted = 1e-8 * max(1.0, math.sqrt(float(self.changed.min())))
        return saddle(self._slopes, self.start, float(mean), x, wanted=wanted, longest=1.0, steps=40)

    def _slopes(self, point: np.ndarray, x: Real) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        return self._gradient(point, x)[0], lambda: self._hessian(point, x)

    def _hessian(self, point: np.ndarray, x: Real) -> np.ndarray:
        """Central differences of the gradient, which is exact; second derivatives would be fifteen."""
        step, out = 1e-5, np.empty((5, 5))
        for i in range(5):
            ahead, behind = point.copy(), point.copy()
            ahead[i] += step
            behind[i] -= step
            out[i] = (self._gradient(ahead, x)[0] - self._gradient(behind, x)[0]) / (2 * step)
        return (out + out.T) / 2

    def _gradient(self, point: np.ndarray, x: Real) -> tuple[np.ndarray, float, float]:
        """Gradient and value of the exponent, and the product of both rates of the last change."""
        t, z1, z2, log1, log2 = point
        h = self.noise.counts
        first, second = self.noise.rates(math.exp(log1)), self.noise.rates(math.exp(log2))
        p, q, e1, e2, e12 = first.p, second.p, math.exp(z1), math.exp(z2), math.exp(t + z1 + z2)
        only1, only2, both = p * (1 - q) * e1, (1 - p) * q * e2, p * q * e12
        whole = (1 - p) * (1 - q) + only1 + only2 + both
        with1, with2 = (1 - q) * e1 + q * e12, (1 - p) * e2 + p * e12
        without1, without2 = (1 - q) + q * e2, (1 - p) + p * e1
        gradient = np.array(
            [
                float(h @ (both / whole)) - x,
                float(h @ ((only1 + both) / whole)) - self.changed[0],
                float(h @ ((only2 + both) / whole)) - self.changed[1],
                float(h @ (first.slope * (with1 - without1) / whole)),
                float(h @ (second.slope * (with2 - without2) / whole)),
            ]
        )
        value = float(h @ np.log(whole)) - t * x - z1 * self.changed[0] - z2 * self.changed[1]
        last = float(h @ (first.slope * with1 / whole)) * float(h @ (second.slope * with2 / whole))
        return gradient, value, last


def jaccard_at_scales(noise: Noise, scales: tuple[float, float]) -> Law:
    """Law of the Jaccard of two independent masks of null 1b, of given scales, on one base.

    J = E X/E U to first order; X/U ≥ j is Σ (1 + j) m₁m₂ − j (m₁ + m₂) ≥ 0, an event of a sum.

    **Source** this study's null 1b; the delta method; Lugannani and Rice (1980).
    """
    h = noise.counts
    p, q = (noise.rates(scale).p for scale in scales)
    union = float(h @ (p + q - p * q))
    if union == 0:
        return unknown()
    mean = float(h @ (p * q)) / union
    _, variance, third = _moments(h, _outcomes(p, q, mean))
    sd = math.sqrt(variance)

    def tail(j: Real) -> tuple[float, float]:
        return _tail_at_zero(h, _outcomes(p, q, j), 1.0), _tail_at_zero(h, _outcomes(p, q, j), -1.0)

    return near_normal(mean, sd / union, third / sd**3 if sd else 0.0, tail)


def _outcomes(p: np.ndarray, q: np.ndarray, j: Real) -> tuple[tuple[np.ndarray, float], ...]:
    return (p * q, 1 - j), (p + q - 2 * p * q, -j)


def _tail_at_zero(counts: np.ndarray, outcomes: tuple[tuple[np.ndarray, float], ...], sign: Real) -> float:
    """log P(sign · Σ ≥ 0) of a sum of independent values."""
    values = [sign * x for _, x in outcomes]
    chances = [p for p, _ in outcomes]
    if not any(x > 0 for x in values):
        return float(counts @ np.log1p(-sum(p for p, x in zip(chances, values, strict=True) if x < 0)))

    def tilt(t: Real) -> tuple[np.ndarray, list[np.ndarray]]:
        grown = [p * np.expm1(t * x) for p, x in zip(chances, values, strict=True)]
        whole = 1 + sum(grown, np.zeros_like(counts))
        return whole, [p * math.exp(t * x) / whole for p, x in zip(chances, values, strict=True)]

    def mean_and_variance(t: Real) -> tuple[float, float]:
        _, shares = tilt(t)
        one = sum((s * x for s, x in zip(shares, values, strict=True)), np.zeros_like(counts))
        two = sum((s * x**2 for s, x in zip(shares, values, strict=True)), np.zeros_like(counts))
        return float(counts @ one), float(counts @ (two - one**2))

    t = increasing_root(mean_and_variance, 0.0)
    exponent = -float(counts @ np.log(tilt(t)[0]))
    variance = mean_and_variance(t)[1]
    return log_tail(math.copysign(math.sqrt(max(2 * exponent, 0.0)), t), t * math.sqrt(variance))
