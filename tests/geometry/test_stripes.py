"""Dispersion, orientation, smoothing and rank correlation, on stripes drawn by hand and on noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from threegates.errors import GeometryError
from threegates.geometry.masks import count_changes
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.precision import to_bf16
from threegates.geometry.stripes import (
    column_dispersion,
    dispersion,
    orientation,
    rank_correlation,
    ratio_dispersion,
    row_dispersion,
    smooth,
)

masks = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(lambda shape: arrays(np.bool_, shape))


def dispersion_by_hand(mask: np.ndarray) -> float:
    """Oracle: the definition, entry by entry."""
    rows = [sum(map(int, row)) / len(row) for row in mask]
    p = sum(rows) / len(rows)
    binomial = p * (1 - p) / mask.shape[1]
    return sum((r - p) ** 2 for r in rows) / len(rows) / binomial if 0 < p < 1 else math.nan


@given(masks)
def test_dispersion_is_its_definition(mask):
    assert row_dispersion(torch.from_numpy(mask)) == pytest.approx(dispersion_by_hand(mask), nan_ok=True)


@given(masks)
def test_columns_are_the_rows_of_the_transpose(mask):
    mask = torch.from_numpy(mask)
    assert column_dispersion(mask) == pytest.approx(row_dispersion(mask.T), nan_ok=True)
    assert dispersion(mask) == pytest.approx((row_dispersion(mask), column_dispersion(mask)), nan_ok=True)


def test_counts_serve_as_well_as_masks():
    mask = bernoulli_mask((30, 50), 400, noise_generator(0))
    base = torch.ones(30, 50).bfloat16()
    counts = count_changes(base, to_bf16(base.double() + mask))
    assert dispersion(counts) == pytest.approx(dispersion(mask))


def test_wholly_changed_rows_give_the_number_of_columns():
    mask = torch.zeros(8, 20, dtype=torch.bool)
    mask[::2] = True
    assert row_dispersion(mask) == pytest.approx(20)
    assert column_dispersion(mask) == 0
    assert orientation(mask) == math.inf
    assert orientation(mask.T) == -math.inf


def test_independent_entries_give_one():
    generator = noise_generator(1)
    found = np.array([dispersion(bernoulli_mask((48, 64), 900, generator)) for _ in range(200)])
    # Given the total, the expectation is (N − n)/(N − 1) = .98 for rows of 64 in 3,072.
    expected = np.array([(3072 - 64) / 3071, (3072 - 48) / 3071])
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    assert (abs(found.mean(0) - expected) < 4 * error).all()


@pytest.mark.parametrize("value", [False, True])
def test_nothing_or_everything_changed_has_no_dispersion(value):
    mask = torch.full((3, 4), value)
    assert all(map(math.isnan, (*dispersion(mask), orientation(mask))))


def test_empty_matrices_have_no_dispersion():
    for shape in [(0, 3), (3, 0), (0, 0)]:
        assert all(map(math.isnan, dispersion(torch.zeros(shape, dtype=torch.bool))))


def test_a_vector_has_no_dispersion():
    vector = torch.zeros(4).bfloat16()
    with pytest.raises(GeometryError, match="only matrices"):
        row_dispersion(count_changes(vector, vector))


def test_ratio_dispersion_takes_ratios():
    assert ratio_dispersion(torch.tensor([0.0, 1.0], dtype=torch.float64), 10) == pytest.approx(10)


def test_orientation_tells_rows_from_columns():
    generator = torch.Generator().manual_seed(0)
    rate = torch.linspace(0.1, 0.9, 40)[:, None].expand(40, 60)
    mask = torch.rand(40, 60, generator=generator) < rate
    assert orientation(mask) > 1
    assert orientation(mask.T) == pytest.approx(-orientation(mask))
    checkered = (torch.arange(4)[:, None] + torch.arange(6)) % 2 == 0
    assert math.isnan(orientation(checkered))  # every ratio is one half


@given(arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1)), st.sampled_from([1, 3, 5]))
def test_smooth_is_the_mean_over_the_lines_there_are(ratio, window):
    half = window // 2
    oracle = [ratio[max(0, i - half) : i + half + 1].mean() for i in range(len(ratio))]
    assert smooth(torch.from_numpy(ratio), window).tolist() == pytest.approx(oracle)


@pytest.mark.parametrize("window", [0, -1, 2, 4])
def test_windows_are_odd(window):
    with pytest.raises(GeometryError, match="odd and positive"):
        smooth(torch.zeros(5, dtype=torch.float64), window)


def test_rank_correlation():
    a = torch.tensor([0.1, 0.4, 0.2, 0.9], dtype=torch.float64)
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # Ranks 1 3 2 4 against 1.5 1.5 3 4, by hand.
    assert rank_correlation(a, torch.tensor([1.0, 1.0, 2.0, 3.0])) == pytest.approx(0.6324555)


def test_rank_correlation_where_there_is_none():
    a = torch.tensor([0.1, 0.4, 0.2])
    assert math.isnan(rank_correlation(a, torch.ones(3)))
    assert math.isnan(rank_correlation(a[:1], a[:1]))
    with pytest.raises(GeometryError, match=r"(?s)different length.*3.*2"):
        rank_correlation(a, a[:2])
