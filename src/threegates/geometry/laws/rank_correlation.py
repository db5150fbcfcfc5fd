"""Spearman's rank correlation of two vectors of whole numbers, over many draws of both."""

from __future__ import annotations

import numpy as np

from threegates.geometry.laws.law import Law, of_draws

# Ranks are looked up in tables of so many entries.
_TABLE = 1 << 22


def ranks_of(counts: np.ndarray) -> np.ndarray:
    """Centred ranks of each row, tied values sharing their mean rank, over the root of their squares' sum.

    The product of two such rows is their rank correlation.

    Parameters
    ----------
    counts : (draws, m) integers.

    Returns
    -------
    (draws, m) float64; NaN where a row is constant.

    **Source** Spearman (1904).
    """
    draws, m = counts.shape
    out = np.empty(counts.shape)
    least = int(counts.min(initial=0))
    width = int(counts.max(initial=0)) - least + 1
    height = max(1, _TABLE // max(width, m, 1))
    for top in range(0, draws, height):
        place = counts[top : top + height] - least
        place += width * np.arange(len(place))[:, None]
        tied = np.bincount(place.ravel(), minlength=width * len(place)).reshape(len(place), width)
        # Twice the mean rank of a value, less the mean of all ranks: a whole number.
        ranks = 2 * tied.cumsum(axis=1) - tied - m
        np.take(ranks.astype(np.float64).ravel(), place, out=out[top : top + height])
    norms = np.sqrt(np.einsum("dm,dm->d", out, out))[:, None]
    out /= np.where(norms > 0, norms, np.nan)
    return out


def correlation_law(first: np.ndarray, second: np.ndarray) -> Law:
    """Law of Spearman's ρ between two draws of the same number, from their ranks by `ranks_of`.

    Draws in which a vector is constant have no ρ and are left out.
    """
    return of_draws(np.clip(np.einsum("dm,dm->d", first, second), -1.0, 1.0))


def mean_ranks(ranks: np.ndarray) -> np.ndarray:
    """Mean over draws of their ranks by `ranks_of`, (m,); for independent runs the product is their mean ρ.

    Draws in which a vector is constant are left out; NaN where all are.
    """
    ordered = ranks[np.isfinite(ranks).all(axis=1)]
    return ordered.mean(axis=0) if len(ordered) else np.full(ranks.shape[1], np.nan)


def rank_correlation_law(first: np.ndarray, second: np.ndarray) -> Law:
    """Law of Spearman's ρ between the lines of two runs, from draws of their counts.

    Parameters
    ----------
    first, second : (draws, m) integers. Who correlates many runs ranks each once, with `ranks_of`.

    **Source** Spearman (1904), tied values sharing their mean rank.
    """
    return correlation_law(ranks_of(first), ranks_of(second))
