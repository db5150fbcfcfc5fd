"""Null of emergence without walks: counts along lines at two times of a Gaussian walk, seen through storage.

A weight's walk has passed its gap at both times with a probability that is a code's alone, a bivariate
normal's of correlation √(t/T). So each cell's two counts have known means, variances and covariance. They are
drawn as whole numbers from two Gaussian ones, as in `drawn_lines`, of the correlation at which the *whole*
numbers have that covariance; small counts would else go together too little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from scipy.special import ndtr, owens_t
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.laws.cells import Cells
from threegates.geometry.laws.codes import CodeCounts
from threegates.geometry.laws.drawn_lines import counts_in_order, hermite_coefficients
from threegates.geometry.laws.lines import line_sums
from threegates.geometry.laws.noise import Noise, noise_of
from threegates.geometry.nulls.noise import Real, check_count
from threegates.geometry.precision import ETA

# Halvings of the interval in which a correlation lies.
_HALVINGS = 30

Pair = tuple[np.ndarray, np.ndarray]


def walk_line_counts(
    base: Shaped[Tensor, "m n"],
    codes: CodeCounts,
    changed: tuple[int, int],
    times: tuple[Real, Real],
    draws: int,
    generator: np.random.Generator,
    eta: Real = ETA,
) -> tuple[Pair, Pair]:
    """Draws of the changed entries in each row, and in each column, at two times of a walk of `storage_path`.

    Each draw's counts of an axis belong to one walk; the two axes do not. Every draw adds up to the counts.

    How far it holds, beside walks on 64 × 96 weights: variances up to 2 % low, for the counts are held in an
    order and not by chance, which 8 lines make 7 %; mean and spread of rank correlations as those of walks,
    also from 8 lines, and from 60 changed weights at a time. Where 18 and 30 of them change, rank
    correlations are low by .01 and spread by 11 % too much. Below `stopped.SMALL` weights that change or that
    stay, or 8 lines, draw walks.

    Parameters
    ----------
    base : finite bfloat16 matrix, whose codes are counted in `codes`.
    changed : entries of the mask at each time; times : 0 < earlier < later.
    eta : tolerance of Definition 2.1, by which a weight counts as changed.

    Returns
    -------
    rows (draws, m) at the earlier and at the later time, and columns (draws, n) likewise; int64.

    Raises
    ------
    GeometryError : times do not ascend from above 0, or a count is out of range.

    **Source** this study's null of emergence; Cario and Nelson (1997) for whole numbers from Gaussian ones.
    """
    if not 0 < times[0] < times[1]:
        raise GeometryError("a walk is seen at two times", expected="0 < earlier < later", found=times)
    for count in changed:
        check_count(count, codes.size)
    noise = noise_of(codes, eta)
    functions, kinds = _functions(noise, changed, math.sqrt(times[0] / times[1]))
    sums, (m, n) = line_sums(base, codes, functions), base.shape
    rows, columns = (
        _drawn(_two_times(one, length, kinds, changed), draws, generator)
        for one, length in ((sums.rows, n), (sums.columns, m))
    )
    return rows, columns


def both_sides(noise: Noise, scales: tuple[Real, Real], correlation: Real) -> np.ndarray:
    """(K,) probability that two Gaussian noises of these scales, so correlated, both change a weight.

    **Source** Owen (1956).
    """
    down, up = ([np.minimum(gap / scale, 1e3) for scale in scales] for gap in (noise.down, noise.up))
    return (
        _orthant(down[0], down[1], correlation)
        + _orthant(up[0], up[1], correlation)
        + _orthant(down[0], up[1], -correlation)
        + _orthant(up[0], down[1], -correlation)
    )


def _orthant(a: np.ndarray, b: np.ndarray, correlation: Real) -> np.ndarray:
    """P(X > a, Y > b) of standard normal X and Y, for positive a and b."""
    rest = math.sqrt(1 - correlation**2)
    slopes = ((b - correlation * a) / (a * rest), (a - correlation * b) / (b * rest))
    return np.maximum((ndtr(-a) + ndtr(-b)) / 2 - owens_t(a, slopes[0]) - owens_t(b, slopes[1]), 0.0)


def _functions(noise: Noise, changed: tuple[int, int], correlation: Real) -> tuple[np.ndarray, int]:
    """Functions of the code to be summed along lines, eight for each kind of cell, and the number of kinds.

    A code's kind is whether it likely changes at either time: 1; p, v, λ at both; the covariance.
    """
    scales = [noise.scale_of_count(min(max(count, 0.5), noise.size - 0.5)) for count in changed]
    first, second = (noise.rates(scale) for scale in scales)
    both = np.minimum(both_sides(noise, (scales[0], scales[1]), correlation), np.minimum(first.p, second.p))
    values = np.stack(
        [
            np.ones_like(both),
            *(first.p, first.variance, first.slope),
            *(second.p, second.variance, second.slope),
            np.maximum(both - first.p * second.p, 0.0),
        ]
    )
    kind = 2 * (first.p > 0.5) + (second.p > 0.5)
    found = np.unique(kind)
    return np.concatenate([values * (kind == one) for one in found]), len(found)


@dataclass(frozen=True)
class _TwoTimes:
    """Cells at both times, and each one's covariance of the two counts."""

    earlier: Cells
    later: Cells
    covariance: np.ndarray


def _two_times(sums: np.ndarray, length: int, kinds: int, changed: tuple[int, int]) -> _TwoTimes:
    parts = sums.reshape(len(sums), kinds, 8).transpose(2, 1, 0).reshape(8, -1)
    earlier, later = (
        Cells(len(sums), parts[0], parts[i], parts[i + 1], parts[i + 2], held)
        for i, held in zip((1, 4), changed, strict=True)
    )
    return _TwoTimes(earlier, later, parts[7])


def _drawn(pair: _TwoTimes, draws: int, generator: np.random.Generator) -> Pair:
    correlation = _correlations(pair)[:, None]
    later = generator.standard_normal((len(pair.covariance), draws))
    earlier = generator.standard_normal(later.shape)
    earlier *= np.sqrt(1 - correlation**2)
    earlier += correlation * later
    return counts_in_order(earlier, pair.earlier), counts_in_order(later, pair.later)


def _correlations(pair: _TwoTimes) -> np.ndarray:
    """(C,) correlations of Gaussian counts at which whole ones have the covariance, by halving.

    Cov = Σ_k a_k b_k r^k, a and b the coefficients of both in Hermite's polynomials (Mehler's formula).
    """
    products = hermite_coefficients(pair.earlier) * hermite_coefficients(pair.later)
    low, high = np.zeros(len(products)), np.ones(len(products))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = np.zeros_like(middle)
        for product in products.T[::-1]:
            found = (found + product) * middle
        less = found < pair.covariance
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return low
