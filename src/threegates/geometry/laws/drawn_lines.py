"""Counts along the rows and the columns of a null's masks, drawn as whole numbers without drawing masks.

What hangs on the order of counts, as rank correlations do, has no formula: ties matter. So counts are drawn,
thousands of vectors of length m, in three steps. Gaussian counts of cells get the covariance of `Cells`. Each
becomes a whole number at the same quantile of its own law, a binomial of the cell's mean and variance. Where
the null holds the count, the draw is brought to it entry by entry: the last that changed are taken back, or
more change, of each cell in proportion to how many can and to how fast they do. That is the noise's own way
to the count, and for entries that are all alike it is exact, however few change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from scipy.special import gammaln, ndtr, ndtri, xlog1py, xlogy
from torch import Tensor

from threegates.geometry.laws.cells import Cells, HeldStrata
from threegates.geometry.laws.masks import MaskLaw, Seen

#: Terms by which the covariance of two whole numbers is found from their scores' correlation.
DEGREE = 16
#: Up to so many hypergeometric counts in all, strata are drawn exactly.
EXACT = 1 << 18
# A table of a cell's law ends so many standard deviations, and as many counts, from its mean.
_FAR = 7.0
# Cells whose tables are made together.
_TOGETHER = 1 << 10
# A binomial of so many entries is Poisson's law.
_MANY = 1e7
# A normal score that no draw reaches.
_END = 12.0
_TINY = 1e-12
_ROUNDS = 100
# Counts that are brought to what is held together.
_ENTRIES = 1 << 20


def line_counts_drawn(
    law: MaskLaw, seen: Seen, base: Shaped[Tensor, "m n"], draws: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of the changed entries in each row and in each column of a null's masks.

    Each axis has its own joint law; the two do not belong to one mask. Where the null holds the count, every
    draw adds up to it. Strata are drawn exactly where strata, lines and draws are few.

    Parameters
    ----------
    law : of the null; seen : the observed mask on `base`.

    Returns
    -------
    (draws, m) and (draws, n) int64, in [0, n] and [0, m].

    **Source** this study; Cario and Nelson (1997) for whole numbers from a Gaussian vector.
    """
    rows, columns = (counts_drawn(cells, draws, generator) for cells in law.cells(seen, base))
    return rows, columns


def counts_drawn(cells: Cells, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Draws of the counts along m lines, (draws, m) int64."""
    strata = cells.strata
    if strata is not None and draws * strata.entries.size <= EXACT:
        return _of_strata(strata, draws, generator).reshape(draws, -1, cells.lines).sum(axis=1)
    return counts_at(_gaussian(cells, draws, generator), cells, generator)


def counts_at(scores: np.ndarray, cells: Cells, generator: np.random.Generator) -> np.ndarray:
    """Counts along m lines, (draws, m) int64, at the quantiles of Gaussian counts of the cells.

    Parameters
    ----------
    scores : (C, draws) centred, each over the root of its own variance a.
    generator : of which entries come or go where the count is held.
    """
    counts = np.ascontiguousarray(_at_quantiles(scores, cells).T)
    _hold(counts, cells, generator)
    return counts.reshape(len(counts), -1, cells.lines).sum(axis=1)


def counts_in_order(scores: np.ndarray, cells: Cells) -> np.ndarray:
    """As `counts_at`, for cells whose counts go together with others; the count is held without chance."""
    places = np.empty(scores.shape)
    counts = np.ascontiguousarray(_at_quantiles(scores, cells, places).T)
    _hold_in_order(counts, np.ascontiguousarray(places.T), cells)
    return counts.reshape(len(counts), -1, cells.lines).sum(axis=1)


def _of_strata(strata: HeldStrata, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Exact draws: multivariate hypergeometric, summed."""
    counts = np.zeros((draws, len(strata.entries)), dtype=np.int64)
    for entries, taken in zip(strata.entries.T.astype(np.int64), strata.taken, strict=True):
        counts += generator.multivariate_hypergeometric(entries, int(taken), draws, method="marginals")
    return counts


def _gaussian(cells: Cells, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(C, draws) Gaussian counts, each over the root of its own variance a.

    With D = diag(a) and D^-½ U = Q R, D + U M Uᵀ = D^½ (1 + Q R M Rᵀ Qᵀ) D^½, whose root takes the
    eigenvalues of R M Rᵀ alone.
    """
    normal = generator.standard_normal((len(cells.own), draws))
    if cells.strata is not None:
        scaled = cells.strata.entries / np.sqrt(np.maximum(cells.own, _TINY))[:, None]
        frame, inner = np.linalg.qr(scaled * (cells.own > _TINY)[:, None])
        values, turn = np.linalg.eigh(cells.strata.within(inner))
        along = frame @ turn
        normal += along @ ((np.sqrt(np.maximum(1 + values, 0.0)) - 1)[:, None] * (along.T @ normal))
    return normal


@dataclass(frozen=True)
class _Binomials:
    """Binomial(N, μ/N) of each cell's mean and variance v = μ(1 − μ/N), N not whole.

    mirrored : where most of a cell changes; the law, and mean and N, are then those of what stays.
    """

    mirrored: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    entries: np.ndarray


def _binomials(cells: Cells) -> _Binomials:
    mirrored, variance = cells.mean > cells.size / 2, cells.variances()
    mean = np.maximum(np.where(mirrored, cells.size - cells.mean, cells.mean), 0.0)
    entries = np.minimum(mean**2 / np.maximum(mean - variance, mean**2 / _MANY + _TINY), _MANY)
    return _Binomials(mirrored, mean, variance, entries)


def _at_quantiles(scores: np.ndarray, cells: Cells, places: np.ndarray | None = None) -> np.ndarray:
    """Whole numbers at the quantiles of Gaussian counts, (C, draws) both, of each cell's law.

    places : (C, draws) gets where in its step of the distribution function each level lies, in [0, 1].
    """
    out, size = np.empty(scores.shape, dtype=np.int64), cells.size.astype(np.int64)
    spread = np.sqrt(
        np.divide(cells.variances(), cells.own, out=np.ones_like(cells.own), where=cells.own > _TINY)
    )
    for here, first, borders in _borders(cells):
        for cell, start, border in zip(here, first, borders * spread[here, None], strict=True):
            step = border.searchsorted(scores[cell])
            out[cell] = start + step
            if places is not None:
                ends = ndtr(np.append(np.append(-_END, border), _END) / spread[cell])
                width = np.maximum(np.diff(ends), _TINY)
                places[cell] = (ndtr(scores[cell] / spread[cell]) - ends[step]) / width[step]
    return np.clip(out, 0, size[:, None], out=out)


def hermite_coefficients(cells: Cells) -> np.ndarray:
    """(C, DEGREE) coefficients of each cell's count in Hermite's polynomials of its score, from He₁ on.

    Of one that steps up at the borders z: Σ φ(z) He_{k−1}(z)/√k! for k = 1 …

    **Source** Abramowitz and Stegun (1972), 22.11 for the integral of φ Heₖ.
    """
    out = np.empty((len(cells.size), DEGREE))
    for here, _, borders in _borders(cells):
        before, now = np.zeros_like(borders), np.exp(-0.5 * borders**2) / math.sqrt(2 * math.pi)
        for k in range(DEGREE):
            out[here, k] = now.sum(axis=1) / math.sqrt(k + 1)
            before, now = now, (borders * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return out


def _borders(cells: Cells) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Some cells at a time: which, where their tables start, and the normal scores at which they step up."""
    for top in range(0, len(cells.size), _TOGETHER):
        here = np.arange(top, min(top + _TOGETHER, len(cells.size)))
        first, tables = _tables(cells.only(here))
        yield here, first, np.clip(ndtri(tables), -_END, _END)


def _tables(cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """Where each cell's table starts, and its distribution function from there.

    N lies between two whole numbers, and the law is the mixture of both that has the variance.
    """
    laws = _binomials(cells)
    few = np.maximum(np.floor(laws.entries + _TINY), np.ceil(laws.mean))
    more = few + 1
    share = np.clip(few * more / np.maximum(laws.entries, _TINY) - few, 0.0, 1.0)[:, None]
    width = int(2 * (_FAR * math.sqrt(float(laws.variance.max(initial=0.0))) + _FAR)) + 2
    start = np.maximum(np.floor(laws.mean - width / 2), 0.0)
    at = start[:, None] + np.arange(width)
    mass = share * _binomial(at, few, laws.mean) + (1 - share) * _binomial(at, more, laws.mean)
    mass[laws.mirrored] = mass[laws.mirrored, ::-1]
    start = np.where(laws.mirrored, cells.size - start - width + 1, start)
    below = mass.cumsum(axis=1)
    return start.astype(np.int64), below / below[:, -1:]


def _binomial(at: np.ndarray, entries: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Masses of Binomial(N, μ/N) at whole numbers ≥ 0; none beyond N."""
    n = entries[:, None]
    p = np.divide(mean, entries, out=np.zeros_like(mean), where=entries > 0)[:, None]
    inside = np.maximum(n - at, 0.0)
    ways = gammaln(n + 1) - gammaln(at + 1) - gammaln(inside + 1)
    return np.where(at <= n, np.exp(ways + xlogy(at, p) + xlog1py(inside, -p)), 0.0)


def _hold(counts: np.ndarray, cells: Cells, generator: np.random.Generator) -> None:
    """Take entries back, or add some, until each draw adds up to the count that is held, each at random.

    Parameters
    ----------
    counts : (draws, C), changed in place.
    """

    def events(chance: np.ndarray, number: np.ndarray, _: np.ndarray, __: np.ndarray) -> np.ndarray:
        borders = chance.cumsum(axis=1)
        # The draws' distribution functions one after another: one search for all events.
        borders = borders / borders[:, -1:] + np.arange(len(chance))[:, None]
        draw = np.repeat(np.arange(len(chance)), number)
        found = borders.ravel().searchsorted(draw + generator.random(len(draw)), side="right")
        cells = chance.shape[1]
        return np.bincount(np.minimum(found, (draw + 1) * cells - 1), minlength=chance.size).reshape(
            -1, cells
        )

    _bring(counts, cells, events)


def _hold_in_order(counts: np.ndarray, places: np.ndarray, cells: Cells) -> None:
    """As `_hold`, but entries come and go in the order that the levels of counts give them.

    With the law's mean a cell's count moves and its level stays: the nearer that lies to a step, the sooner.
    So two counts that go together still do when both have been held.

    Parameters
    ----------
    counts : (draws, C), changed in place; places : (draws, C) in [0, 1], of each level in its count's step.
    """

    def one(chance: np.ndarray, number: int, draw: int, coming: bool) -> np.ndarray:
        passed = number / chance.sum() * chance + (places[draw] if coming else 1 - places[draw])
        found = np.floor(passed)
        missing = number - int(found.sum())
        if missing:
            # The next events of all, or the last, make up for what the common time has missed.
            away = found + 1 - passed if missing > 0 else np.where(found > 0, passed - found, np.inf)
            nearest = np.argpartition(away / chance, min(abs(missing), len(chance)) - 1)
            found[nearest[: abs(missing)]] += np.sign(missing)
        return np.maximum(found, 0).astype(np.int64)

    def events(chance: np.ndarray, number: np.ndarray, draws: np.ndarray, coming: np.ndarray) -> np.ndarray:
        told = zip(chance, number.tolist(), draws.tolist(), coming.tolist(), strict=True)
        return np.stack([one(*of_one) for of_one in told])

    _bring(counts, cells, events)


#: Of some draws that are off: chances of their cells, by how many entries, which draws, and which lack some.
Events = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _bring(counts: np.ndarray, cells: Cells, events: Events) -> None:
    """Bring draws to the count that is held, if one is, by events that are chosen by their chances.

    A binomial's entries come and go alike: of Y out of N, Y may go and N − Y may come. Between both ways,
    what the chance of which ones adds to a variance cancels.
    """
    if cells.held is None:
        return
    laws, size = _binomials(cells), cells.size.astype(np.int64)
    speed = cells.speed / max(float(cells.speed.sum()), _TINY) + _TINY
    go, come = speed / np.maximum(laws.mean, _TINY), speed / np.maximum(laws.entries - laws.mean, _TINY)
    height = max(1, _ENTRIES // max(counts.shape[1], 1))
    for top in range(0, len(counts), height):
        block = counts[top : top + height]
        for _ in range(_ROUNDS):
            over = block.sum(axis=1) - cells.held
            (off,) = np.nonzero(over)
            if not len(off):
                break
            row, lacks = block[off], over[off, None] < 0
            present = np.where(laws.mirrored, size - row, row)
            going = np.maximum(present, _TINY) * go
            coming = np.maximum(laws.entries - present, _TINY) * come
            chance = np.where(laws.mirrored == lacks, going, coming)
            found = events(chance, np.abs(over[off]), top + off, lacks[:, 0])
            block[off] = np.clip(row + np.where(lacks, found, -found), 0, size)
