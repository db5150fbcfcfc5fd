"""Null 1b: the scale of noise whose rounded update has a norm, and the law it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.planted.planted_weights import weights
from tests.planted.searched_noise import change_probability, storage_scale_for_norm
from threegates.errors import GeometryError
from threegates.geometry.nulls.noise import critical_scale, gaussian_noise, noise_generator
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.precision import to_bf16, unchanged_by_definition


def test_each_weight_changes_as_often_as_the_formula_says():
    w = weights(8, 8)
    w[0, :4] = torch.tensor([0.0, 1.0, -2.0, 2**-130]).bfloat16()
    scale = 2e-3
    probability = change_probability(w, scale)
    generator, draws = noise_generator(4), 4000
    hits = sum(storage_mask_at_norm(w, scale, generator).double() for _ in range(draws))
    error = (probability * (1 - probability) / draws).sqrt() + 1 / draws
    z = (hits / draws - probability) / error
    assert probability.min() < 0.2 and probability.max() > 0.99
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) < 2


def test_probability_at_a_binade_border_adds_two_unequal_tails():
    normal = torch.distributions.Normal(0.0, 1.0)
    tails = normal.cdf(torch.tensor([-(2.0**-8), -(2.0**-9)], dtype=torch.float64) / 3e-3)
    assert float(change_probability(torch.ones(()).bfloat16(), 3e-3)) == pytest.approx(float(tails.sum()))


def test_without_noise_nothing_changes():
    w = weights()
    assert not change_probability(w, 0).any()
    assert not storage_mask_at_norm(w, 0, 0).any()


@pytest.mark.parametrize("scale", [-1e-9, math.inf, math.nan])
def test_impossible_scales_are_refused(scale):
    for call in (
        lambda: change_probability(weights(), scale),
        lambda: storage_mask_at_norm(weights(), scale, 0),
    ):
        with pytest.raises(GeometryError, match="finite and not negative"):
            call()


def rounded_norm(w: torch.Tensor, scale: float, generator: torch.Generator) -> float:
    moved = to_bf16(w.double() + scale * gaussian_noise(w.shape, generator).double())
    return float((moved.double() - w.double()).norm())


@pytest.mark.parametrize("norm", [1e-3, 0.02, 0.3, 5.0, 400.0])
def test_noise_of_the_found_scale_has_the_norm_after_rounding(norm):
    w = weights()
    scale = storage_scale_for_norm(w, norm, noise_generator(0, "scale"))
    generator = noise_generator(1, "other draws")
    norms = np.array([rounded_norm(w, scale, generator) for _ in range(200)])
    # Four draws fix the scale, so their own scatter is what remains.
    assert np.sqrt((norms**2).mean()) == pytest.approx(norm, abs=4 * norms.std() / 2 + 1e-3 * norm)


def test_the_scale_meets_its_tolerance_on_its_own_draws():
    w, norm = weights(), 0.05
    for tolerance in (1e-2, 1e-4):
        scale = storage_scale_for_norm(w, norm, noise_generator(2), draws=3, tolerance=tolerance)
        generator = noise_generator(2)
        squares = [rounded_norm(w, scale, generator) ** 2 for _ in range(3)]
        assert math.sqrt(sum(squares) / 3) == pytest.approx(norm, rel=tolerance)


def test_rounding_swallows_most_of_small_noise_so_the_scale_makes_up_for_it():
    # What matching the norm before rounding would get wrong.
    w = weights()
    share = [storage_scale_for_norm(w, norm, 0) * math.sqrt(w.numel()) / norm for norm in (1e-4, 1e-3, 0.3)]
    assert share[0] > 2 and share[1] > 1.3
    assert share[2] == pytest.approx(1, abs=0.02)


def test_a_norm_that_lies_inside_a_step_gives_the_step():
    w = torch.ones(1).bfloat16()
    scale = storage_scale_for_norm(w, 2**-10, 0, draws=1)
    assert scale == pytest.approx(float(critical_scale(w, gaussian_noise((1,), 0))), rel=1e-8)


def test_norms_at_the_ends():
    w = weights()
    assert storage_scale_for_norm(w, 0, 0) == 0
    for norm in (-1, math.inf, math.nan):
        with pytest.raises(GeometryError, match="no noise has that norm"):
            storage_scale_for_norm(w, norm, 0)
    with pytest.raises(GeometryError, match="no noise has that norm"):
        storage_scale_for_norm(w[:0], 1, 0)


def test_the_probability_of_change_at_a_tolerance_is_the_share_of_rounded_noise_beyond_it():
    generator, scale = torch.Generator().manual_seed(3), 0.004
    base = torch.randn(300, generator=generator).to(torch.bfloat16)
    probability = change_probability(base, scale, eta=1e-2)
    noise = scale * torch.randn(4000, 300, generator=generator, dtype=torch.float64)
    stored = to_bf16(base.double() + noise)
    share = (~unchanged_by_definition(base.expand_as(stored), stored, 1e-2)).double().mean(0)
    assert torch.allclose(probability, share, atol=0.04)
    assert float(probability.mean()) < float(change_probability(base, scale).mean()) - 0.05
