"""Strata of |w|, within which the magnitude null permutes a mask; the paper's Bernoulli null has one.

A stratum is a single value of |w|, or a few neighbouring ones where single values are rare: as fine as it can
be, without strata of one to four weights, in which every permutation of a mask would be nearly the mask
itself. None reaches across a power of two, where the gap to the next bf16 value doubles, and with it how much
a weight has to move to be stored differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from threegates.errors import GeometryError
from threegates.geometry.laws.codes import CodeCounts

#: Weights that a stratum has at least, unless its whole binade has fewer.
FEWEST = 64
QUANTILE_BINS = 64
# Bits of the fraction of a bf16 value; what stands above them is its binade.
_FRACTION = 7


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


def value_strata(codes: CodeCounts, fewest: int = FEWEST) -> Strata:
    """Values of |w|, joined from the least on to `fewest` weights, within a binade; the rest joins the last.

    A binade with fewer weights is one stratum; zero and the subnormals are one binade.

    Raises
    ------
    GeometryError : fewest < 1.

    **Source** this study; the gap of bf16 is constant within a binade.
    """
    if fewest < 1:
        raise GeometryError("a stratum has a weight", expected="1 or more", found=fewest)
    magnitudes, place = np.unique(codes.patterns & 0x7FFF, return_inverse=True)
    counts = np.bincount(place, codes.counts).astype(np.int64)
    of_value = np.empty(len(magnitudes), dtype=np.int64)
    number = 0
    binades = np.flatnonzero(np.diff(magnitudes >> _FRACTION)) + 1
    for here in np.split(np.arange(len(magnitudes)), binades):
        labels = _joined(counts[here], fewest)
        of_value[here] = number + labels
        number += int(labels[-1]) + 1 if len(labels) else 0
    return Strata(of_value[place], number)


def _joined(counts: np.ndarray, fewest: int) -> np.ndarray:
    """Labels from 0 on of neighbours that are joined until they are `fewest`."""
    labels = np.empty(len(counts), dtype=np.int64)
    label = held = 0
    for i, count in enumerate(counts.tolist()):
        if held >= fewest:
            label, held = label + 1, 0
        labels[i], held = label, held + count
    if held < fewest and label:
        labels[labels == label] = label - 1
    return labels


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
