"""What the variance of a dispersion is made of: traces of the covariance of counts, by each way to them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.planted import tensors
from threegates.geometry.laws import dispersion
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.dispersion import at_strata, line_dispersion
from threegates.geometry.laws.lines import stratum_counts
from threegates.geometry.laws.strata import value_strata


def counts(family: str, density: float = 0.2):
    """Counts along rows and along columns of a planted base, smaller weights changed more often."""
    base = tensors.family(family)
    codes = count_codes(base)
    strata = value_strata(codes)
    sizes = strata.sums(codes.counts)
    taken = np.floor(sizes * np.linspace(2 * density, 0, len(sizes)))
    m, n = base.shape
    rows, columns = stratum_counts(base, codes, strata)
    return at_strata(rows, sizes, taken, n), at_strata(columns, sizes, taken, m)


@pytest.mark.parametrize("family", ["power-law", "row-scaled", "clustered"])
def test_traces_are_those_of_the_covariance_itself(family):
    for lines in counts(family):
        shared = lines.shared.astype(np.float64)
        covariance = np.diag(lines.own) + shared @ np.diag(lines.weights) @ shared.T
        assert lines.trace() == pytest.approx(np.trace(covariance), rel=1e-9)
        assert lines.trace_of_square() == pytest.approx((covariance**2).sum(), rel=1e-6)
        step = np.linspace(-1, 2, len(lines.own))
        assert lines.variance_of(step) == pytest.approx(step @ covariance @ step, rel=1e-9, abs=1e-9)


def test_blocks_of_lines_and_joined_strata_change_no_digit_that_is_told(monkeypatch):
    whole = [
        (lines.trace_of_square(), line_dispersion(lines, fixed_count=True)) for lines in counts("power-law")
    ]
    monkeypatch.setattr(dispersion, "_WIDENED", 7)
    monkeypatch.setattr(dispersion, "_LARGE_WORK", 0)
    for (square, law), lines in zip(whole, counts("power-law"), strict=True):
        assert len(lines.weights) > 2 * dispersion._JOINED
        joined = dispersion._norm_of_product(lines.shared, lines.weights)
        weighted = lines.shared * np.sqrt(-lines.weights)
        exact = float(np.square(weighted @ weighted.T).sum())
        # On few lines a stratum has few entries on each, and neighbours are less alike than in a model.
        assert joined == pytest.approx(exact, rel=0.2) and joined != exact
        assert abs(lines.trace_of_square() - square) < 1e-3 * square
        again = line_dispersion(lines, fixed_count=True)
        assert again.mean == pytest.approx(law.mean, rel=1e-12) and again.sd == pytest.approx(
            law.sd, rel=1e-3
        )
