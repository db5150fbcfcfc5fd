"""Sums of hypergeometric counts: scipy, enumeration of every mask, and convolution far into the tails."""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom

from threegates.geometry.laws import hypergeometric
from threegates.geometry.laws.hypergeometric import sum_of_hypergeometrics


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.data())
def test_one_stratum_is_scipy_s_hypergeometric(size, data):
    marked, taken = data.draw(st.integers(0, size)), data.draw(st.integers(0, size))
    law, true = sum_of_hypergeometrics([size], [marked], [taken]), hypergeom(size, marked, taken)
    spread = 0.0 if size == 1 else true.std()
    assert law.mean == pytest.approx(true.mean()) and law.sd == pytest.approx(spread, abs=1e-9)
    for x in range(max(0, marked + taken - size), min(marked, taken) + 1):
        upper, lower = law.tail(x)
        assert math.exp(upper) == pytest.approx(true.sf(x - 1), rel=1e-8, abs=1e-300)
        assert math.exp(lower) == pytest.approx(true.cdf(x), rel=1e-8, abs=1e-300)


def test_a_small_tensor_is_enumerated():
    sizes, marked, taken = [5, 4, 6], [2, 4, 3], [3, 1, 2]
    places = [range(size) for size in sizes]
    masks = product(*(combinations(place, count) for place, count in zip(places, taken, strict=True)))
    sums = [sum(sum(i < m for i in one) for one, m in zip(mask, marked, strict=True)) for mask in masks]
    law = sum_of_hypergeometrics(sizes, marked, taken)
    assert law.mean == pytest.approx(np.mean(sums)) and law.sd == pytest.approx(np.std(sums))
    for x in range(8):
        upper, lower = law.tail(x)
        assert math.exp(upper) == pytest.approx(np.mean([s >= x for s in sums]))
        assert math.exp(lower) == pytest.approx(np.mean([s <= x for s in sums]))


@pytest.mark.parametrize(
    ("sizes", "marked", "taken"),
    [
        ([300, 500, 200], [100, 150, 50], [60, 100, 40]),
        ([900, 900], [450, 30], [90, 800]),
        ([64] * 20, [32] * 10 + [6] * 10, [5] * 20),
        ([64] * 150 + [90] * 50, [32] * 50 + [2] * 50 + [63] * 50 + [9] * 50, [1] * 100 + [40] * 100),
        ([1000, 64], [500, 60], [12, 32]),
    ],
)
def test_tails_by_saddle_points_are_the_convolved_ones(sizes, marked, taken, monkeypatch):
    exact = sum_of_hypergeometrics(sizes, marked, taken)
    looked_at, found = 0, []
    for x in range(int(exact.mean), min(sum(marked), sum(taken))):
        if 1e-13 < (true := math.exp(exact.tail(x)[0])) < 0.5:
            found.append((x, true))
    monkeypatch.setattr(hypergeometric, "EXACT", 0)
    for x, true in found:
        approximate = sum_of_hypergeometrics(sizes, marked, taken).tail(x)[0]
        assert approximate == pytest.approx(math.log(true), abs=0.1), x
        looked_at += 1
    assert looked_at > 6


def test_what_is_fixed_is_certain():
    law = sum_of_hypergeometrics([10, 5, 0], [10, 2, 0], [4, 5, 0])
    assert (law.mean, law.sd, law.tail(6), law.tail(7)[0]) == (6, 0, (0.0, 0.0), -math.inf)
    assert math.isnan(law.against(math.nan).log10_p) and law.against(6).p == 1
