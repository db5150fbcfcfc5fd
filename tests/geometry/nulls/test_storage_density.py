"""Null 1a: exactly as many entries as were changed, those of rounding."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.planted.planted_weights import weights
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import critical_scale, gaussian_noise, noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.precision import to_bf16


@given(st.integers(0, 12 * 16), st.integers(0, 3))
def test_storage_masks_have_exactly_the_count_and_are_those_of_rounding(changed, seed):
    w = weights(12, 16, seed)
    mask = storage_mask_at_density(w, changed, noise_generator(seed))
    assert int(mask.sum()) == changed
    noise = gaussian_noise(w.shape, noise_generator(seed))
    scales = critical_scale(w, noise).flatten().sort().values
    below = float(scales[changed - 1]) if changed else 0.0
    above = float(scales[changed]) if changed < len(scales) else 2 * below
    assert below < above  # so that a scale between them gives this count
    rounded = to_bf16(w.double() + (below + above) / 2 * noise.double())
    assert torch.equal(mask, update_mask(w, rounded))
