"""Counts at two times of a walk against walks, and their chances against scipy's bivariate normal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from tests.geometry.laws.test_drawn_lines import assert_same_lines
from tests.planted import tensors
from threegates.errors import GeometryError
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.noise import Noise, noise_of
from threegates.geometry.laws.rank_correlation import rank_correlation_law
from threegates.geometry.laws.walks import both_sides, walk_line_counts
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.paths import storage_path
from threegates.measures.agreement import rank_correlations

WALKS = 500


@pytest.mark.parametrize("correlation", [0.05, 0.6, 0.999])
def test_chances_at_both_times_are_the_bivariate_normal_s(correlation):
    down, up = np.array([0.01, 0.3, 1.0, 2.5, 1e-40]), np.array([0.02, 0.3, 2.0, 1.2, 1e-40])
    noise, scales = Noise(np.ones(5), down, up), (0.8, 1.7)
    found = both_sides(noise, scales, correlation)
    law = multivariate_normal(cov=np.array([[1.0, correlation], [correlation, 1.0]]))
    for value, low, high in zip(found, down, up, strict=True):
        corners = [law.cdf([a / scales[0], b / scales[1]]) for a in (-low, high) for b in (-low, high)]
        inside = corners[3] - corners[2] - corners[1] + corners[0]
        alone = [1 - noise.rates(s).p[list(down).index(low)] for s in scales]
        assert value == pytest.approx(1 - alone[0] - alone[1] + inside, abs=2e-5)


def _cov(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first - first.mean(axis=0)) * (second - second.mean(axis=0))


@pytest.mark.parametrize(
    ("name", "shares", "times", "eta"),
    [
        ("row-scaled", (0.02, 0.025), (1.9, 2.0), 1e-3),
        ("row-scaled", (0.02, 0.9), (0.02, 1.0), 5e-3),
        ("clustered", (0.3, 0.6), (0.5, 1.0), 1e-3),
        ("subnormal", (0.9, 0.97), (0.8, 1.0), 1e-3),
        ("power-law", (0.5, 0.51), (0.999, 1.0), 1e-3),
    ],
)
def test_counts_and_their_rank_correlation_are_those_of_walks(name, shares, times, eta):
    base, source = tensors.family(name), noise_generator(1, name)
    changed = (int(shares[0] * base.numel()), int(shares[1] * base.numel()))
    found = walk_line_counts(base, count_codes(base), changed, times, 2000, np.random.default_rng(0), eta)
    walks = [storage_path(base, changed, times, source, eta) for _ in range(WALKS)]
    for axis, drawn in enumerate(found):
        true = [np.stack([walk[time].sum(dim=1 - axis).numpy() for walk in walks]) for time in (0, 1)]
        for mine, theirs, count in zip(drawn, true, changed, strict=True):
            assert (mine.sum(axis=1) == count).all()
            assert_same_lines(mine, theirs)
        products = [_cov(*pair).sum(axis=1) for pair in (drawn, true)]
        error = np.hypot(*(one.std() / np.sqrt(len(one)) for one in products))
        spread = np.sqrt(np.prod([one.var(axis=0).sum() for one in true]))
        assert abs(products[0].mean() - products[1].mean()) < 4.5 * error + 0.02 * spread
        pairs = zip(*true, strict=True)
        tensors.assert_agrees(
            rank_correlation_law(*drawn),
            np.array([rank_correlations(np.stack(pair))[0, 1] for pair in pairs]),
        )


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["power-law", "row-scaled", "clustered", "subnormal", "one-row"]),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.floats(1e-4, 0.9999),
    st.integers(0, 2**32),
)
def test_counts_stay_in_range_add_up_and_repeat(name, shares, time, seed):
    base = tensors.family(name)
    changed = (round(shares[0] * base.numel()), round(shares[1] * base.numel()))
    codes = count_codes(base)
    found, again = (
        walk_line_counts(base, codes, changed, (time, 1.0), 10, np.random.default_rng(seed)) for _ in range(2)
    )
    for axis, (drawn, same) in enumerate(zip(found, again, strict=True)):
        for one, other, count in zip(drawn, same, changed, strict=True):
            assert one.shape == (10, base.shape[axis]) and one.min() >= 0
            assert one.max() <= base.shape[1 - axis] and (one.sum(axis=1) == count).all()
            assert (one == other).all()


def test_a_walk_that_was_seen_a_moment_ago_has_hardly_moved():
    base = tensors.family("power-law")
    (before, after), _ = walk_line_counts(
        base, count_codes(base), (2000, 2000), (1 - 1e-9, 1.0), 50, np.random.default_rng(2)
    )
    assert (before != after).mean() < 0.01
    noise = noise_of(count_codes(base))
    scale = noise.scale_of_count(2000)
    assert both_sides(noise, (scale, scale), 1 - 1e-12) == pytest.approx(noise.rates(scale).p, abs=1e-5)


def test_times_and_counts_that_no_walk_has_are_refused():
    base = tensors.family("row-scaled")
    codes, source = count_codes(base), np.random.default_rng(0)
    for times in ((1.0, 1.0), (2.0, 1.0), (0.0, 1.0)):
        with pytest.raises(GeometryError, match=r"(?s)seen at two times.*0 < earlier < later"):
            walk_line_counts(base, codes, (5, 6), times, 3, source)
    with pytest.raises(GeometryError, match="cannot change that many"):
        walk_line_counts(base, codes, (5, base.numel() + 1), (0.5, 1.0), 3, source)
