"""Gaussian noise on stored weights, code by code: how likely a scale changes each, and which scale fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from threegates.errors import GeometryError
from threegates.geometry.laws.codes import CodeCounts
from threegates.geometry.nulls.noise import Real
from threegates.geometry.precision import ETA

# Beyond these logarithms of the scale nothing or everything changes: gaps lie in [2⁻¹³⁴, 2¹²⁸].
LEAST_LOG, LARGEST_LOG = -140 * math.log(2), 200 * math.log(2)
_SQRT_2PI = math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Rates:
    """For each code, at a scale s: the probability p that noise s Z changes it, and how p grows with log s.

    p = Φ(−d/s) + Φ(−u/s); slope λ = dp/d log s = (d/s) φ(d/s) + (u/s) φ(u/s); bend = dλ/d log s.
    """

    p: np.ndarray
    slope: np.ndarray
    bend: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """v = p (1 − p)."""
        return self.p * (1 - self.p)


@dataclass(frozen=True)
class Noise:
    """What noise meets: weights of each code, and their distances d and u down and up to the next change."""

    counts: np.ndarray
    down: np.ndarray
    up: np.ndarray

    @property
    def size(self) -> float:
        """Weights in all."""
        return float(self.counts.sum())

    def rates(self, scale: Real) -> Rates:
        """Rates of change at a scale ≥ 0.

        **Source** Φ and φ are the standard normal's; this study's storage null.
        """
        if scale == 0:
            return Rates(*(np.zeros_like(self.counts) for _ in range(3)))
        with np.errstate(over="ignore", under="ignore"):
            sides = [np.minimum(gap / scale, 1e3) for gap in (self.down, self.up)]
            pull = [y * np.exp(-0.5 * y * y) / _SQRT_2PI for y in sides]
        bend = sum(((y * y - 1) * one for y, one in zip(sides, pull, strict=True)), np.zeros_like(pull[0]))
        return Rates(ndtr(-sides[0]) + ndtr(-sides[1]), pull[0] + pull[1], bend)

    def expected(self, scale: Real) -> float:
        """Σ h p, the expected count of changed weights."""
        return float(self.counts @ self.rates(scale).p)

    def scale_of_count(self, changed: Real) -> float:
        """The scale at which noise changes as many weights in expectation, 0 < changed < size.

        Raises
        ------
        GeometryError : changed lies outside (0, size), where no scale does.

        **Source** this study's null 1a.
        """
        if not 0 < changed < self.size:
            raise GeometryError("no scale changes that many", expected=f"0 … {self.size}", found=changed)
        return _root_in_log(lambda scale: self.expected(scale) / changed - 1)

    @cached_property
    def by_distance(self) -> Noise:
        """The same noise with codes of equal distances taken together, for p does not tell down from up.

        What depends on rates alone is then a sum over far fewer codes: a binade's all lie equally far apart.
        """
        sides = np.sort(np.stack([self.down, self.up]), axis=0)
        (near, far), place = np.unique(sides, axis=1, return_inverse=True)
        return Noise(np.bincount(place.reshape(-1), self.counts), near, far)


def noise_of(codes: CodeCounts, eta: Real = ETA) -> Noise:
    """What noise meets in a tensor whose codes were counted, at a tolerance η of Definition 2.1."""
    return Noise(codes.counts, *codes.gaps(eta))


def _root_in_log(excess: Callable[[float], float], low: Real = LEAST_LOG, high: Real = LARGEST_LOG) -> float:
    return math.exp(brentq(lambda log: excess(math.exp(log)), low, high, xtol=1e-12, rtol=1e-15))


# ------------------------------------------------------------------------------------------- equal norm

#: Borders of cells are looked at up to so many scales away: 2 y Φ(−y) is 4e-15 there.
REACH = 8.0
#: Weights up to so many scales are taken together: there E‖·‖² is smooth in the weight.
SMOOTH = 10.0
#: Cells finer than the scale by this factor are summed by Euler and Maclaurin's formula, to 1e-12.
FINE = 256.0
_DEGREE = 64
_SUBNORMAL_GAP, _LEAST_NORMAL = 2.0**-133, 2.0**-126
_BINADES = 16
# In place of the logarithm of nothing.
_FAR = 1e3


def expected_squares(values: np.ndarray, scale: Real) -> np.ndarray:
    """E (round(w + s Z) − w)² for each stored value w: what one weight adds to the squared norm of noise.

    By parts over the borders b_j between cells, of distance g_j between their codes:
    E = 2 Σ_j g_j |b_j − w| Φ(−|b_j − w|/s), a sum of positive terms. Relative error about 1e-12. Beyond the
    largest finite code stands 2¹²⁸, as in IEEE rounding.

    Parameters
    ----------
    values : (K,) finite bf16 values in float64; scale : ≥ 0.

    Raises
    ------
    GeometryError : the scale is negative or not finite.

    **Source** this study's null 1b; Euler–Maclaurin summation, DLMF §2.10(i).
    """
    if not 0 <= scale < math.inf:
        raise GeometryError("a noise scale is finite and not negative", found=scale)
    if scale == 0:
        return np.zeros_like(values)
    distinct, place = np.unique(np.abs(values), return_inverse=True)
    found = np.empty_like(distinct)
    smooth = distinct <= SMOOTH * scale
    found[smooth] = _near(distinct[smooth], scale)
    found[~smooth] = _far(distinct[~smooth], scale)
    return found[place.reshape(-1)]


def _near(values: np.ndarray, scale: Real) -> np.ndarray:
    """Weights of few scales: directly, or through a polynomial in w² where they are many."""
    if len(values) <= _DEGREE + 1:
        return _near_ones(values, scale)
    unit = np.polynomial.chebyshev.Chebyshev.interpolate(
        lambda squares: _near_ones(scale * np.sqrt(squares), scale) / scale**2, _DEGREE, [0.0, SMOOTH**2]
    )
    return unit((values / scale) ** 2) * scale**2


def _near_ones(values: np.ndarray, scale: Real) -> np.ndarray:
    """By parts from the cell of zero: w² + 2 Σ_j g_j [y Φ(−y/s) at y = b_j − w, and at y = b_j + w]."""
    start = _fine_up_to(scale)
    borders, steps = _borders(start, (SMOOTH + REACH) * scale)
    total = values * values
    for shift in (-values, values):
        away = borders + shift[:, None]
        total += 2 * (away * ndtr(-away / scale)) @ steps
        total += _of_fine_cells(start, shift, scale)
    return total


def _fine_up_to(scale: Real) -> float:
    """The largest power of two below which all cells are finer than the scale by `FINE`; 0 if none are."""
    if scale / FINE < _SUBNORMAL_GAP:
        return 0.0
    return 2.0 ** min(max(math.floor(math.log2(scale / FINE)) + 8, -126), 127)


def _of_fine_cells(stop: Real, shifts: np.ndarray, scale: Real) -> np.ndarray:
    """2 Σ g (b + shift) Φ(−(b + shift)/s) over the borders in [0, stop], by the midpoint rule's expansion."""
    if not stop:
        return np.zeros_like(shifts)
    edges = np.maximum(stop * 2.0 ** -np.arange(_BINADES), _LEAST_NORMAL)
    highs = edges[np.append(True, edges[:-1] > _LEAST_NORMAL)]
    lows = np.append(highs[1:], 0.0)
    squares = np.maximum(_SUBNORMAL_GAP, highs / 256) ** 2
    whole = _primitive(stop + shifts, scale) - _primitive(shifts, scale)
    ends = _steepness(highs + shifts[:, None], scale) - _steepness(lows + shifts[:, None], scale)
    return whole - ends @ squares / 24


def _primitive(y: np.ndarray, scale: Real) -> np.ndarray:
    """∫ 2 y Φ(−y/s) dy."""
    z = y / scale
    return y * y * ndtr(-z) + scale**2 * (ndtr(z) - z * _normal_density(z))


def _steepness(y: np.ndarray, scale: Real) -> np.ndarray:
    """d/dy of 2 y Φ(−y/s)."""
    z = y / scale
    return 2 * ndtr(-z) - 2 * z * _normal_density(z)


def _normal_density(z: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * np.square(z)) / _SQRT_2PI


def _borders(start: Real, stop: Real) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints between neighbouring codes from one at `start` to beyond `stop`, and the codes' distances."""
    first, last = (int(_pattern_below(np.array([x]))[0]) for x in (start, stop))
    codes = _value_of(np.arange(first, min(last + 2, 0x7F80) + 1))
    return (codes[1:] + codes[:-1]) / 2, np.diff(codes)


def _far(values: np.ndarray, scale: Real) -> np.ndarray:
    """Weights of many scales: the borders about each, all on its own side of zero; at least one a side."""
    if not len(values):
        return values
    own = _pattern_below(values)
    first = np.minimum(_pattern_below(values - REACH * scale), own - 1)
    last = np.minimum(np.maximum(_pattern_below(values + REACH * scale) + 1, own + 1), 0x7F80)
    lengths = last - first
    which = np.repeat(np.arange(len(values)), lengths)
    lower = (
        np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths) + np.repeat(first, lengths)
    )
    below, above = _value_of(lower), _value_of(lower + 1)
    away = np.abs((below + above) / 2 - values[which])
    return np.bincount(which, 2 * (above - below) * away * ndtr(-away / scale), minlength=len(values))


def _pattern_below(values: np.ndarray) -> np.ndarray:
    """Bit pattern of the largest bf16 value not above each of these, which are ≥ 0."""
    capped = np.minimum(values, np.finfo(np.float32).max)
    bits = capped.astype(np.float32)
    over = bits.astype(np.float64) > capped
    words = bits.view(np.uint32).astype(np.int64) - over
    return words >> 16


def _value_of(patterns: np.ndarray) -> np.ndarray:
    """Values of patterns ≥ 0; 2¹²⁸ in infinity's place."""
    values = (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.where(patterns >= 0x7F80, 2.0**128, values)


def scale_of_norm(codes: CodeCounts, norm: Real) -> float:
    """Scale of Gaussian noise whose *rounded* update has a Frobenius norm: Σ_c h(c) E_c(s) = norm².

    Arithmetic on the histogram, no pass over the tensor and no draw.

    Parameters
    ----------
    norm : ≥ 0, the stored ‖ΔW‖_F to match.

    Returns
    -------
    s ≥ 0, to a relative 1e-11; 0 where norm is 0.

    Raises
    ------
    GeometryError : norm is negative or not finite, or no weight was counted.

    **Source** this study's null 1b.
    """
    if not 0 <= norm < math.inf or not codes.size:
        raise GeometryError(
            "no noise has that norm", expected="a finite norm ≥ 0 of a tensor with entries", found=norm
        )
    if norm == 0:
        return 0.0

    def excess(scale: Real) -> float:
        # Noise that is small beside every gap moves no weight, to the last digit: that is less than any norm.
        share = float(codes.counts @ expected_squares(codes.values, scale)) / norm**2
        return math.log(share) if share > 0 else -_FAR

    return _widened_root(excess, norm / math.sqrt(codes.size))


def _widened_root(excess: Callable[[float], float], guess: Real) -> float:
    """Root of an increasing function of a scale, in a bracket that doubles from a guess."""
    low = high = math.log(guess)
    step = math.log(1.25)
    while excess(math.exp(low)) > 0:
        low, high, step = low - step, low, 2 * step
    while excess(math.exp(high)) < 0:
        low, high, step = high, high + step, 2 * step
    return _root_in_log(excess, low, high)


def noise_sparsity(noise: Noise, scale: Real) -> tuple[float, float]:
    """Expected sparsity of noise of a scale, and its standard deviation.

    1 − Σ h p/n and √(Σ h p (1 − p))/n; NaN without weights.

    **Source** Zhu et al. (2025), Definition 2.2, under this study's null 1b.
    """
    if not noise.size:
        return math.nan, math.nan
    rates = noise.rates(scale)
    share = float(noise.counts @ rates.p) / noise.size
    return 1 - share, math.sqrt(float(noise.counts @ rates.variance)) / noise.size
