"""Laws of how far two masks agree, both of one null or one of them observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from threegates.geometry.laws.law import FIRST_ORDER, Law, certain, near_normal, unknown
from threegates.geometry.laws.noise import Noise
from threegates.geometry.laws.saddlepoint import increasing_root, log_tail, saddle
from threegates.geometry.laws.stopped import CERTAIN, SMALL, inclusion
from threegates.geometry.nulls.noise import Real


def jaccard_of_intersection(both: Law, first: int, second: int) -> Law:
    """Law of J = X/(n₁ + n₂ − X), X = |M₁ ∩ M₂|, for masks of fixed counts: J rises with X.

    Unknown where both masks are empty.

    **Source** Jaccard (1912); second-order delta method for the mean.
    """
    total = first + second
    if not total:
        return unknown()

    def jaccard(x: Real) -> float:
        return x / (total - x) if total > x else math.nan

    return Law(
        mean_jaccard(both.mean, both.sd**2, total),
        total / (total - both.mean) ** 2 * both.sd,
        jaccard(both.low),
        jaccard(both.high),
        lambda j: both.tail(total * j / (1 + j)),
        both.how,
    )


def mean_jaccard(mean: Real, variance: Real, total: int) -> float:
    """Mean of J = X/(n₁ + n₂ − X) to second order, from the moments of X and n₁ + n₂; NaN where this is 0.

    **Source** Jaccard (1912); second-order delta method.
    """
    union = total - mean
    return mean / union + total * variance / union**3 if total else math.nan


def stopped_intersection(
    noise: Noise, changed: tuple[int, int], scales: tuple[Real, Real] | None = None
) -> Law:
    """Law of |M₁ ∩ M₂| for two independent masks of null 1a, of given counts, on one base.

    Mean Σ h p₁p₂, variance Σ h Var(m₁m₂ − r₁m₁ − r₂m₂) with r₁ = Σλ₁p₂/Λ₁. Certain where a mask is empty or
    full; of first order alone where fewer than `SMALL` weights change or stay.

    Parameters
    ----------
    scales : `Noise.scale_of_count` of each count, where they are known.

    **Source** this study's null 1a; Skovgaard (1987).
    """
    if any(one in (0, noise.size) for one in changed):
        return certain(changed[0] * changed[1] / noise.size if noise.size else 0.0)
    noise = noise.by_distance
    scales = scales or (noise.scale_of_count(changed[0]), noise.scale_of_count(changed[1]))
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

    found = near_normal(mean, sd, third / sd**3, tail)
    return _marked(found, [min(one, noise.size - one) for one in changed])


def _marked(law: Law, rarer: Sequence[Real]) -> Law:
    """A law that says that it is of first order, if of either mask too few weights change or stay."""
    return replace(law, how=FIRST_ORDER) if min(rarer) < SMALL else law


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
        _, values, last = self._gradients(point[None], x)
        spread = float(np.linalg.det(self._hessian(point, x)))
        if spread <= 0:
            return math.nan
        t = side * point[0]
        w = math.copysign(math.sqrt(max(-2 * float(values[0]), 0.0)), t)
        return log_tail(w, -math.expm1(-t) * math.sqrt(spread) / float(last[0]))

    def _saddle(self, x: Real) -> np.ndarray | None:
        """(t, z₁, z₂, τ₁, τ₂) at which all derivatives vanish."""
        mean = self._gradients(self.start[None], 0.0)[0][0, 0]
        wanted = 1e-8 * max(1.0, math.sqrt(float(self.changed.min())))
        return saddle(self._slopes, self.start, float(mean), x, wanted=wanted, longest=1.0, steps=40)

    def _slopes(self, point: np.ndarray, x: Real) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        return self._gradients(point[None], x)[0][0], lambda: self._hessian(point, x)

    def _hessian(self, point: np.ndarray, x: Real) -> np.ndarray:
        """Central differences of the gradient, which is exact; second derivatives would be fifteen."""
        steps = 1e-5 * np.eye(5)
        ahead, behind = self._gradients(np.concatenate([point + steps, point - steps]), x)[0].reshape(2, 5, 5)
        out = (ahead - behind) / 2e-5
        return (out + out.T) / 2

    def _rates(self, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P, K) p and λ at log-scales, of which few are distinct."""
        distinct, place = np.unique(logs, return_inverse=True)
        found = [self.noise.rates(math.exp(log)) for log in distinct]
        return np.stack([one.p for one in found])[place], np.stack([one.slope for one in found])[place]

    def _gradients(self, points: np.ndarray, x: Real) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(P, 5) gradients and (P,) values of the exponent, and products of both rates of the last change."""
        t, z1, z2 = (points[:, i, None] for i in range(3))
        h = self.noise.counts
        (p, slope1), (q, slope2) = (self._rates(points[:, i]) for i in (3, 4))
        e1, e2, e12 = np.exp(z1), np.exp(z2), np.exp(t + z1 + z2)
        only1, only2, both = p * (1 - q) * e1, (1 - p) * q * e2, p * q * e12
        whole = (1 - p) * (1 - q) + only1 + only2 + both
        with1, with2 = (1 - q) * e1 + q * e12, (1 - p) * e2 + p * e12
        slope1, slope2 = slope1 / whole, slope2 / whole
        parts = [
            both / whole,
            (only1 + both) / whole,
            (only2 + both) / whole,
            slope1 * (with1 - (1 - q) - q * e2),
            slope2 * (with2 - (1 - p) - p * e1),
        ]
        held = np.array([x, *self.changed, 0.0, 0.0])
        gradients = np.stack([part @ h for part in parts], axis=1) - held
        values = np.log(whole) @ h - points[:, :3] @ held[:3]
        return gradients, values, ((slope1 * with1) @ h) * ((slope2 * with2) @ h)


def jaccard_at_scales(noise: Noise, scales: tuple[float, float]) -> Law:
    """Law of the Jaccard of two independent masks of null 1b, of given scales, on one base.

    J = E X/E U − Cov(X − J U, U)/(E U)², U = |M₁ ∪ M₂|, to second order; X/U ≥ j is Σ (1 + j) m₁m₂ −
    j (m₁ + m₂) ≥ 0, an event of a sum. Of first order alone where fewer than `SMALL` weights are expected to
    change or to stay; unknown where none is.

    **Source** this study's null 1b; the delta method; Lugannani and Rice (1980).
    """
    noise = noise.by_distance
    h = noise.counts
    p, q = (noise.rates(scale).p for scale in scales)
    either = p + q - p * q
    union = float(h @ either)
    if union == 0:
        return unknown()
    share = float(h @ (p * q)) / union
    mean = share - float(h @ ((p * q - share * either) * (1 - either))) / union**2
    _, variance, third = _moments(h, _outcomes(p, q, share))
    sd = math.sqrt(variance)

    def tail(j: Real) -> tuple[float, float]:
        return _tail_at_zero(h, _outcomes(p, q, j), 1.0), _tail_at_zero(h, _outcomes(p, q, j), -1.0)

    found = near_normal(mean, sd / union, third / sd**3 if sd else 0.0, tail)
    return _marked(found, [min(float(h @ one), float(h @ (1 - one))) for one in (p, q)])


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
