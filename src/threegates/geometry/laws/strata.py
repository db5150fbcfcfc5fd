"""Strata of |w|, within which the magnitude null permutes a mask; the paper's Bernoulli null has one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threegates.errors import GeometryError
from threegates.geometry.laws.codes import CodeCounts

QUANTILE_BINS = 64


@dataclass(frozen=True)
class Strata:
    """Which stratum each code lies in, and how many there are."""

    of_code: np.ndarray
    number: int

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """(B,) counts by stratum from counts by code."""
        return np.bincount(self.of_code, counts, minlength=self.number)


def one_stratum(codes: CodeCounts) -> Strata:
    """All weights together: the count is all that is held."""
    return Strata(np.zeros(len(codes.patterns), dtype=np.int64), 1)


def quantile_strata(codes: CodeCounts, bins: int = QUANTILE_BINS) -> Strata:
    """Quantile bins of |w|: the bin of a value is that of its lowest rank, ⌊rank · bins/size⌋.

    Raises
    ------
    GeometryError : bins < 1.

    **Source** as `threegates.geometry.nulls.magnitude.magnitude_bins`.
    """
    if bins < 1:
        raise GeometryError("strata are counted from one", found=bins)
    _, place = np.unique(codes.patterns & 0x7FFF, return_inverse=True)
    counts = np.bincount(place, codes.counts).astype(np.int64)
    ranks = counts.cumsum() - counts
    return Strata((ranks * bins // codes.size)[place], bins)
