"""Null 1a's law of how many changed weights lie in a fixed set: noise whose scale is stopped at a count.

Weight i changes once the scale passes its critical one. At log-scale τ the changes are independent with
probabilities p_i(τ), and the null stops at the τ where the n₁-th change happens:

    P(X ≥ x) = ∫ dτ Σ_i λ_i(τ) P(X₋ᵢ + a_i ≥ x, N₋ᵢ = n₁ − 1 at τ).

All of it, the integral over τ included, is approximated about one saddle point of
K(t, z, τ) − t x − z n₁, K = Σ log(1 − p + p e^{ta + z}); its relative error is O(1/variance), however
far out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from threegates.geometry.laws.law import Law, certain, near_normal, of_draws
from threegates.geometry.laws.noise import Noise, Rates
from threegates.geometry.laws.saddlepoint import log_tail, saddle
from threegates.geometry.nulls.noise import Real

#: Below so many changed (or unchanged) weights first order is not enough, and events are drawn.
SMALL = 100
#: Below this variance of a count it is taken to be certain: what is left is rounding.
CERTAIN = 1e-9
#: Draws where the law is drawn.
DRAWS = 2000
# Counts by draw and code that are held at a time.
_HELD = 1 << 20
_STEPS = 60
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Moments:
    """Of X at the stop: mean, variance and third central moment; r = Σaλ/Λ."""

    mean: Real
    variance: Real
    third: Real


def stopped_sum(noise: Noise, inside: np.ndarray, changed: int, generator: np.random.Generator) -> Law:
    """Law of |mask ∩ A| under null 1a, the mask having exactly `changed` entries.

    Mean Σ_A h p and variance Σ (a − r)² v at the scale where Σ h p = changed, with r = Σaλ/Σλ.

    Parameters
    ----------
    noise : what noise meets; inside : (K,) weights of each code that lie in A; changed : in [0, size].
    generator : of the draws, where fewer than `SMALL` weights change or stay.

    **Source** this study's null 1a; Skovgaard (1987) for double saddle points.
    """
    size, target = noise.size, float(inside.sum())
    if changed in (0, size) or target in (0.0, size):
        return certain(changed * target / size if size else 0.0)
    if min(changed, size - changed) < SMALL:
        return of_draws(drawn_sums(noise, inside[:, None], changed, DRAWS, generator)[:, 0])
    scale = noise.scale_of_count(changed)
    found = first_order(noise, inside, scale)
    if found.variance < CERTAIN:
        return certain(round(found.mean))
    start = math.log(scale)

    def tail(x: Real) -> tuple[float, float]:
        least, most = max(0.0, changed + target - size), min(float(changed), target)
        upper = _Stopped(noise, inside, changed, start).log_upper(math.ceil(x - 1e-9), least, most)
        # P(X ≤ x) is the upper tail of what lies outside the target.
        rest = noise.counts - inside
        beyond = math.ceil(changed - x - 1e-9)
        lower = _Stopped(noise, rest, changed, start).log_upper(beyond, changed - most, changed - least)
        return upper, lower

    sd = math.sqrt(found.variance)
    return near_normal(found.mean, sd, found.third / sd**3, tail)


def expected_sums(
    noise: Noise, insides: np.ndarray, changed: int, generator: np.random.Generator
) -> np.ndarray:
    """(T,) means of |mask ∩ A| under null 1a for T targets at once, as of `stopped_sum`.

    Parameters
    ----------
    insides : (K, T) weights of each code that lie in each target.

    **Source** as `stopped_sum`.
    """
    size = noise.size
    if changed in (0, size):
        return insides.sum(axis=0) * (changed / size if size else 0.0)
    if min(changed, size - changed) < SMALL:
        return drawn_sums(noise, insides, changed, DRAWS, generator).mean(axis=0)
    return inclusion(noise, noise.rates(noise.scale_of_count(changed))) @ insides


def inclusion(noise: Noise, rates: Rates) -> np.ndarray:
    """(K,) probability that null 1a changes a weight of each code, to second order, from the count's scale.

    Weight j changes if its critical scale lies below the n₁-th among the others, whose logarithm δ about the
    scale of the count has E δ = (p_j − 1/2)/Λ + V′/2Λ² − Λ′V/2Λ³ and variance V/Λ², V = Σv. The sum over all
    weights stays the count.

    **Source** this study; order statistics of independent variables that are not alike.
    """
    h, p = noise.counts, rates.p
    total, spread = float(h @ rates.slope), float(h @ rates.variance)
    drift = float(h @ (rates.slope * (1 - 2 * p))) / (2 * total**2)
    drift -= float(h @ rates.bend) * spread / (2 * total**3)
    return p + rates.slope * ((p - 0.5) / total + drift) + rates.bend * spread / (2 * total**2)


def first_order(noise: Noise, inside: np.ndarray, scale: Real) -> Moments:
    """Moments of Σ (a − r) m at a scale; the mean of Σ a m to second order."""
    rates = noise.rates(scale)
    share = float(inside @ rates.slope) / float(noise.counts @ rates.slope)
    outside, v = noise.counts - inside, rates.variance
    skew = v * (1 - 2 * rates.p)
    return Moments(
        float(inside @ inclusion(noise, rates)),
        float(inside @ v) * (1 - share) ** 2 + float(outside @ v) * share**2,
        float(inside @ skew) * (1 - share) ** 3 - float(outside @ skew) * share**3,
    )


@dataclass(frozen=True)
class _Stopped:
    """The saddle-point problem of one target and count; `start` is the log-scale without a tilt."""

    noise: Noise
    inside: np.ndarray
    changed: Real
    start: Real

    def log_upper(self, x: Real, least: Real, most: Real) -> float:
        """log P(X ≥ x)."""
        if x <= least:
            return 0.0
        if x > most:
            return -math.inf
        # At the very end of the support the saddle lies at infinity: half a count inside stands in for it.
        point = self._saddle(min(x, most - 0.25))
        if point is None:
            return math.nan
        value, hessian, prefactor = self._at(point, min(x, most - 0.25))
        spread = -float(np.linalg.det(hessian))
        if spread <= 0:
            return math.nan
        w = math.copysign(math.sqrt(max(-2 * value, 0.0)), point[0])
        return log_tail(w, -math.expm1(-point[0]) * math.sqrt(spread) / prefactor)

    def _saddle(self, x: Real) -> np.ndarray | None:
        """(t, z, τ) at which all derivatives vanish."""
        start = np.array([0.0, 0.0, self.start])
        mean = float(self.inside @ self.noise.rates(math.exp(self.start)).p)
        wanted = _TOLERANCE * max(math.sqrt(self.changed), 1.0)
        return saddle(self._slopes, start, mean, x, wanted=wanted, longest=1.5, steps=_STEPS)

    def _slopes(self, point: np.ndarray, x: Real) -> tuple[np.ndarray, Callable[[], np.ndarray]]:
        gradient, hessian, _, _ = self._derivatives(point, x)
        return gradient, lambda: hessian

    def _at(self, point: np.ndarray, x: Real) -> tuple[float, np.ndarray, float]:
        _, hessian, value, prefactor = self._derivatives(point, x)
        return value, hessian, prefactor

    def _derivatives(self, point: np.ndarray, x: Real) -> tuple[np.ndarray, np.ndarray, float, float]:
        """Gradient, Hessian and value of the exponent, and the rate Λ of the last change under the tilt."""
        t, z, log_scale = point
        rates = self.noise.rates(math.exp(log_scale))
        p, slope, bend = rates.p, rates.slope, rates.bend
        gradient, hessian = np.zeros(3), np.zeros((3, 3))
        value, last = -t * x - z * self.changed, 0.0
        for counts, theta, own in ((self.inside, t + z, True), (self.noise.counts - self.inside, z, False)):
            grown, odds = math.expm1(theta), math.exp(theta)
            part = 1 + p * grown
            share = p * odds / part
            variance = float(counts @ (share * (1 - share)))
            mixed = float(counts @ (slope / part**2)) * odds
            mean = float(counts @ share)
            value += float(counts @ np.log1p(p * grown))
            last += float(counts @ (slope / part)) * odds
            gradient += mean * np.array([own, 1.0, 0.0])
            gradient[2] += float(counts @ (slope / part)) * grown
            hessian[:2, :2] += variance * np.array([[own, own], [own, 1.0]])
            hessian[:2, 2] += mixed * np.array([own, 1.0])
            hessian[2, 2] += float(counts @ (bend * grown / part - (slope * grown / part) ** 2))
        hessian[2, :2] = hessian[:2, 2]
        return gradient - np.array([x, self.changed, 0.0]), hessian, value, last


def drawn_sums(
    noise: Noise, inside: np.ndarray, changed: int, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Draws of |mask ∩ A| for several A under null 1a, exact, at the cost of the rarer of changed and not.

    The smallest critical scales come from those below a scale that more than enough weights pass; where
    few weights stay unchanged, the largest ones from above.

    Parameters
    ----------
    inside : (K, targets).

    Returns
    -------
    (draws, targets).

    **Source** this study's null 1a, event by event.
    """
    few_stay = 2 * changed > noise.size
    events = int(noise.size) - changed if few_stay else changed
    enough = min(events + 12 * math.sqrt(events + 1) + 12, noise.size)
    scale = _scale_of_events(noise, enough, few_stay)
    share = noise.rates(scale).p
    share = 1 - share if few_stay else share
    height = max(1, _HELD // len(share))
    parts = []
    for left in range(0, draws, height):
        counts = _counts_of_enough(noise, share, events, min(height, draws - left), generator)
        row, codes = (
            np.repeat(place, counts.reshape(-1)) for place in np.indices(counts.shape).reshape(2, -1)
        )
        when = _critical_scales(noise, codes, scale, few_stay, generator)
        first = _first(row, -when if few_stay else when, events)
        parts.append(_in_targets(noise, inside, row[first], codes[first], generator))
    out = np.concatenate(parts)
    return inside.sum(axis=0) - out if few_stay else out


def _counts_of_enough(
    noise: Noise, share: np.ndarray, events: int, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """(draws, K) weights of each code that pass a scale, given that at least `events` do."""
    whole = noise.counts.astype(np.int64)
    counts = generator.binomial(whole, share, size=(draws, len(share)))
    while len(few := np.flatnonzero(counts.sum(axis=1) < events)):
        counts[few] = generator.binomial(whole, share, size=(len(few), len(share)))
    return counts


def _first(row: np.ndarray, when: np.ndarray, events: int) -> np.ndarray:
    """Places of the `events` least values of each row, row by row; rows come in order, each with as many."""
    starts = np.searchsorted(row, np.arange(row[-1] + 2))
    place = np.arange(len(row)) - starts[row]
    values = np.full((row[-1] + 1, place.max() + 1), np.inf)
    values[row, place] = when
    least = np.argpartition(values, events - 1, axis=1)[:, :events]
    return (starts[:-1, None] + least).reshape(-1)


def _scale_of_events(noise: Noise, events: Real, few_stay: bool) -> float:
    if events >= noise.size:
        return 0.0 if few_stay else math.inf
    return noise.scale_of_count(noise.size - events if few_stay else events)


def _critical_scales(
    noise: Noise, codes: np.ndarray, scale: Real, above: bool, generator: np.random.Generator
) -> np.ndarray:
    """Critical scales of weights of these codes, given that they lie below the scale (or above it)."""
    down, up = noise.down[codes], noise.up[codes]
    with np.errstate(divide="ignore"):
        far_down, far_up = ndtr(-down / scale) if scale else 0 * down, ndtr(-up / scale) if scale else 0 * up
    if above:
        # |z| below its gap over the scale, on either side of zero.
        position = far_down + (1 - far_down - far_up) * generator.random(len(codes))
    else:
        position = (far_down + far_up) * generator.random(len(codes))
        position = np.where(position < far_down, position, 1 - (position - far_down))
    z = ndtri(position)
    with np.errstate(divide="ignore"):
        return np.where(z < 0, down, up) / np.abs(z)


def _in_targets(
    noise: Noise, inside: np.ndarray, row: np.ndarray, chosen: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """How many of each draw's chosen lie in each target, (draws, targets).

    Weights of one code are alike, whether in a target or not.
    """
    kinds = len(noise.counts)
    hit, number = np.unique(row * kinds + chosen, return_counts=True)
    draw, code = np.divmod(hit, kinds)
    whole, marked = noise.counts[code].astype(np.int64), inside[code].astype(np.int64)
    found = generator.hypergeometric(marked.T, (whole[:, None] - marked).T, number)
    return np.stack([np.bincount(draw, one, minlength=row[-1] + 1) for one in found], axis=1)
