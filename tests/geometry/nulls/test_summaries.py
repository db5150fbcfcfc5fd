"""P-values and summaries of draws, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry.nulls.summaries import NullSummary, p_value, summarise


@pytest.mark.parametrize(
    ("observed", "draws", "tail", "p"),
    [
        (5, [1, 2, 3], "upper", 1 / 4),
        (2, [1, 2, 3], "upper", 3 / 4),  # a draw equal to the observed counts against it
        (0, [1, 2, 3], "upper", 1),
        (5, [1, 2, 3], "two-sided", 2 / 4),
        (0, [1, 2, 3], "two-sided", 2 / 4),
        (2, [1, 2, 3], "two-sided", 1),
        (9, range(1, 40), "upper", 32 / 40),
    ],
)
def test_p_values_by_hand(observed, draws, tail, p):
    assert p_value(observed, list(draws), tail) == pytest.approx(p)


@given(st.integers(0, 39))
def test_the_rank_of_an_exchangeable_value_gives_each_p_once(rank):
    values = list(np.random.default_rng(0).permutation(40).astype(float))
    p = p_value(values[rank], values[:rank] + values[rank + 1 :])
    assert p == pytest.approx((40 - values[rank]) / 40)


def test_p_values_of_nan_are_nan():
    assert math.isnan(p_value(math.nan, [1.0]))
    assert math.isnan(p_value(1.0, [1.0, math.nan]))


@pytest.mark.parametrize(("draws", "tail"), [([], "upper"), ([1.0], "lower")])
def test_p_values_need_draws_and_a_known_tail(draws, tail):
    with pytest.raises(GeometryError, match=f"(?s)no p-value.*{len(draws)} draws, tail '{tail}'"):
        p_value(1.0, draws, tail)


def test_summary_by_hand():
    draws = np.arange(1, 42, dtype=float)
    sd = math.sqrt(41 * 42 / 12)
    summary = summarise(50.0, draws)
    assert isinstance(summary, NullSummary)
    assert (summary.mean, summary.low, summary.high, summary.p, summary.draws) == (21, 2, 40, 1 / 42, 41)
    assert (summary.sd, summary.z) == pytest.approx((sd, 29 / sd))


def test_z_needs_scatter():
    assert math.isnan(summarise(1.0, [2.0]).z)
    assert math.isnan(summarise(1.0, [2.0, 2.0]).z)
