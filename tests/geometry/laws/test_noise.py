"""Noise on codes: against sums over all bf16 codes, the sampler's scale, and numbers whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from tests.planted import tensors
from tests.planted.searched_noise import change_probability, storage_scale_for_norm
from threegates.errors import GeometryError
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.noise import (
    expected_squares,
    noise_of,
    noise_sparsity,
    scale_of_norm,
)
from threegates.geometry.nulls.noise import noise_generator, rounded_sum

POSITIVE = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16).double().numpy()
POSITIVE = np.append(POSITIVE, 2.0**128)
CODES = np.concatenate([-POSITIVE[:0:-1], POSITIVE])
BORDERS, STEPS = (CODES[1:] + CODES[:-1]) / 2, np.diff(CODES)


def by_all_codes(value, scale):
    """E (round(w + s Z) − w)² over every border between two codes."""
    away = np.abs(BORDERS - value)
    return 2 * math.fsum(STEPS * away * ndtr(-away / scale))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 0x7F7F), st.floats(-134, 127), st.floats(-6, 9))
def test_expected_squares_are_the_sum_over_all_codes(code, place, gaps):
    near = float(POSITIVE[code])
    for scale in (2.0**place, max(near, 2.0**-126) * 2.0 ** (gaps - 8)):
        true = by_all_codes(near, min(scale, 2.0**127))
        if true > 1e-250:
            found = expected_squares(np.array([near, -near]), min(scale, 2.0**127))
            assert found == pytest.approx(true, rel=2e-12)


@pytest.mark.parametrize("scale", [2.0**-131, 2.0**-126, 2.0**-119, 3e-3, 1.0, 2.0**100])
def test_weights_of_few_scales_are_interpolated_as_exactly(scale):
    values = POSITIVE[14 * scale >= POSITIVE]
    found = expected_squares(values, scale)
    for place in np.linspace(0, len(values) - 1, min(len(values), 40)).astype(int):
        assert found[place] == pytest.approx(by_all_codes(values[place], scale), rel=2e-12)


@pytest.mark.parametrize("name", sorted(tensors.FAMILIES))
def test_the_scale_of_a_norm_is_the_sampler_s(name):
    base = tensors.family(name)
    codes, size = count_codes(base), float(base.double().norm())
    for norm in (1e-3 * size, 0.3 * size):
        scale = scale_of_norm(codes, norm)
        drawn = storage_scale_for_norm(base, norm, noise_generator(0, name), draws=16, tolerance=1e-4)
        assert scale == pytest.approx(drawn, rel=0.02)
        source, squares = noise_generator(1, name), []
        for _ in range(64):
            moved = rounded_sum(base, torch.randn(base.shape, generator=source), scale).double()
            squares.append(float((moved - base.double()).square().sum()))
        error = np.std(squares) / math.sqrt(len(squares))
        assert abs(np.mean(squares) - norm**2) < 4.5 * error


def test_a_norm_far_below_every_gap_has_a_scale():
    """As of a tensor of which float16 has lost the last digits of a few small weights, and else nothing."""
    codes = count_codes(torch.full((64, 8), 0.75, dtype=torch.bfloat16))
    scale = scale_of_norm(codes, 1e-8)
    found = float(codes.counts @ expected_squares(codes.values, scale))
    assert math.sqrt(found) == pytest.approx(1e-8, rel=1e-9)
    # By hand: up or down by a gap, at half a gap.
    gap = 2.0**-8
    assert found == pytest.approx(512 * gap**2 * math.erfc(gap / 2 / scale / math.sqrt(2)), rel=1e-6)


def test_rates_are_the_sampler_s_probabilities_and_their_slopes():
    base = tensors.family("power-law")
    codes = count_codes(base)
    noise, scale, step = noise_of(codes), 2e-5, 1e-5
    probability = change_probability(base, scale)
    rates = noise.rates(scale)
    assert float(noise.counts @ rates.p) == pytest.approx(float(probability.sum()), rel=1e-12)
    ahead, behind = (noise.rates(scale * math.exp(sign * step)) for sign in (1, -1))
    assert rates.slope == pytest.approx((ahead.p - behind.p) / (2 * step), abs=1e-8)
    assert rates.bend == pytest.approx((ahead.slope - behind.slope) / (2 * step), abs=1e-7)
    assert noise_sparsity(noise, scale)[0] == pytest.approx(1 - float(probability.mean()), rel=1e-12)


@pytest.mark.parametrize("eta", [1e-3, 5e-3, 1e-2])
def test_the_scale_of_a_count_changes_as_many(eta):
    noise = noise_of(count_codes(tensors.family("row-scaled")), eta)
    for changed in (1, 60, 3000, 6143):
        assert noise.expected(noise.scale_of_count(changed)) == pytest.approx(changed, rel=1e-9)


def test_what_has_no_scale_says_so():
    codes = count_codes(tensors.family("row-scaled"))
    with pytest.raises(GeometryError, match="no scale changes that many"):
        noise_of(codes).scale_of_count(codes.size)
    with pytest.raises(GeometryError, match="no noise has that norm"):
        scale_of_norm(codes, -1.0)
    with pytest.raises(GeometryError, match="finite and not negative"):
        expected_squares(np.zeros(1), math.inf)
    assert scale_of_norm(codes, 0) == 0.0 and noise_of(codes).expected(0) == 0
    empty = count_codes(torch.zeros(0, 4, dtype=torch.bfloat16))
    assert math.isnan(noise_sparsity(noise_of(empty), 1.0)[0])


def test_all_zeros_have_a_scale():
    codes = count_codes(torch.zeros(64, 64, dtype=torch.bfloat16))
    scale = scale_of_norm(codes, 1e-3)
    assert float(codes.counts @ expected_squares(codes.values, scale)) == pytest.approx(1e-6, rel=1e-9)
