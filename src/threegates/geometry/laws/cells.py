"""Counts along lines in two cells each, entries that likely change apart from those that likely do not.

A row of which one weight nearly always changes, and every other hardly ever, has a count of mean 1 and of
almost no variance, as no binomial has. Each of its two cells alone has nearly a binomial's, for its
probabilities all lie on one side of a half.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from threegates.geometry.laws.noise import Noise
from threegates.geometry.nulls.noise import Real

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class HeldStrata:
    """Strata within which any entries may be the changed ones, but so many.

    entries : U (C, B) entries of each stratum in each cell; taken : (B,) changed ones of the stratum.
    factor, along : (B,) of M = along alongᵀ − diag(factor), see `Cells`.
    """

    entries: np.ndarray
    taken: np.ndarray
    factor: np.ndarray
    along: np.ndarray

    def variances(self) -> np.ndarray:
        """(C,) diagonal of U M Uᵀ."""
        return (self.entries @ self.along) ** 2 - np.square(self.entries) @ self.factor

    def within(self, frame: np.ndarray) -> np.ndarray:
        """R M Rᵀ of R (K, B)."""
        along = frame @ self.along
        return np.outer(along, along) - (frame * self.factor) @ frame.T


@dataclass(frozen=True)
class Cells:
    """First and second order of the counts in the C = k m cells of m lines, each line's first cell first.

    The second order is that of before the count is held: diag(a) + U M Uᵀ. Holding it takes off each cell
    its share g of what is too many.

    lines : m. size, mean, own : (C,) entries, expected changed ones μ, and a, their variance without M.
    speed : (C,) in proportion to g, by how much each count grows with that of all.
    held : count of all that the null holds, if it does. strata : U and M, where it holds more than that.
    """

    lines: int
    size: np.ndarray
    mean: np.ndarray
    own: np.ndarray
    speed: np.ndarray
    held: int | None = None
    strata: HeldStrata | None = None

    def variances(self) -> np.ndarray:
        """(C,) variances of the counts."""
        if self.strata is None:
            return self.own
        return np.maximum(self.own + self.strata.variances(), 0.0)

    def only(self, some: np.ndarray) -> Cells:
        """Some of the cells, by their indices."""
        strata = self.strata and replace(self.strata, entries=self.strata.entries[some])
        size, mean, own, speed = (one[some] for one in (self.size, self.mean, self.own, self.speed))
        return Cells(self.lines, size, mean, own, speed, self.held, strata)


def functions_of_cells(noise: Noise, scale: Real) -> np.ndarray:
    """(7, K) functions of the code, to be summed along lines: p, v, λ if unlikely; p, v, λ, 1 if likely."""
    rates = noise.rates(scale)
    each = np.stack([rates.p, rates.variance, rates.slope, np.ones_like(rates.p)])
    likely = rates.p > 0.5
    return np.concatenate([each[:3] * ~likely, each * likely])


def cells_of_noise(sums: np.ndarray, length: int, held: int | None = None) -> Cells:
    """Noise of a scale (null 1b), or of a scale that is stopped at a count (null 1a).

    sums : (m, 7) from `functions_of_cells` at the scale; length : entries of a line; held : the count.
    """
    size = np.concatenate([length - sums[:, 6], sums[:, 6]])
    mean, own, speed = (np.concatenate([sums[:, i], sums[:, i + 3]]) for i in range(3))
    return Cells(len(sums), size, mean, own, speed, held)


def cells_at_strata(of_lines: np.ndarray, sizes: np.ndarray, taken: np.ndarray) -> Cells:
    """Bernoulli (one stratum) and magnitude null: permutations within strata.

    C = diag(a) − H diag(f) Hᵀ + a aᵀ/Σa, with a = H (f size) and f = p(1 − p)/(size − 1); the last term is
    what holding the count takes off.

    Parameters
    ----------
    of_lines : H (m, B) entries of each stratum on each line; sizes : (B,) entries of the stratum.
    taken : (B,) changed ones among them.

    **Source** multivariate hypergeometric counts: Johnson, Kotz and Balakrishnan (1997), §39.2.
    """
    likely = 2 * taken > sizes
    entries = np.concatenate([of_lines * ~likely, of_lines * likely]).astype(np.float64)
    p = np.divide(taken, sizes, out=np.zeros(len(sizes)), where=sizes > 0)
    factor = p * (1 - p) / np.maximum(sizes - 1, 1)
    along = factor * sizes
    own, total = entries @ along, max(float(along @ sizes), _TINY)
    held = HeldStrata(entries, taken, factor, along / math.sqrt(total))
    return Cells(len(of_lines), entries.sum(axis=1), entries @ p, own, own, int(taken.sum()), held)
