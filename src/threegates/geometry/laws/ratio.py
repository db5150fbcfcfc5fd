"""Null 1b's law of overlaps: noise of one scale, whose changed entries are as many as they happen to be."""

from __future__ import annotations

import math

import numpy as np

from threegates.geometry.laws.law import Law, near_normal, of_draws, unknown
from threegates.geometry.laws.noise import Noise
from threegates.geometry.laws.saddlepoint import sum_tail
from threegates.geometry.laws.stopped import DRAWS, SMALL
from threegates.geometry.nulls.noise import Real


def overlap_at_scale(noise: Noise, inside: np.ndarray, scale: Real, generator: np.random.Generator) -> Law:
    """Law of |mask ∩ A|/|mask| under null 1b.

    With ρ = E|mask ∩ A|/E|mask| its mean is ρ and its variance Σ (a − ρ)² v/(E|mask|)², for the two counts go
    together. X/N ≥ q is Σ (a − q) m ≥ 0, an event of a sum, whose tail needs no approximation of a ratio.

    Parameters
    ----------
    noise : what noise meets; inside : (K,) weights of each code that lie in A; scale : of the noise.
    generator : of the draws, where fewer than `SMALL` entries are expected to change.

    **Source** this study's null 1b; the delta method.
    """
    rates = noise.rates(scale)
    expected = float(noise.counts @ rates.p)
    if expected == 0:
        return unknown()
    if expected < SMALL:
        return of_draws(_drawn(noise, inside, rates.p, generator))
    share, outside = float(inside @ rates.p) / expected, noise.counts - inside
    variance = float(inside @ rates.variance) * (1 - share) ** 2 + float(outside @ rates.variance) * share**2
    skew = rates.variance * (1 - 2 * rates.p)
    third = float(inside @ skew) * (1 - share) ** 3 - float(outside @ skew) * share**3
    counts, p = np.concatenate([inside, outside]), np.concatenate([rates.p, rates.p])

    def tail(q: Real) -> tuple[float, float]:
        step = np.repeat([1 - q, -q], len(inside))
        return sum_tail(counts, p, step, 0.0), sum_tail(counts, p, -step, 0.0)

    sd = math.sqrt(variance)
    return near_normal(share, sd / expected, third / sd**3 if sd else 0.0, tail)


def _drawn(noise: Noise, inside: np.ndarray, p: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draws of the overlap; NaN where nothing changed."""
    live = p > 0
    both = generator.binomial(inside[live].astype(np.int64), p[live], (DRAWS, int(live.sum()))).sum(axis=1)
    rest = (noise.counts - inside)[live].astype(np.int64)
    other = generator.binomial(rest, p[live], (DRAWS, int(live.sum()))).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return both / (both + other)
