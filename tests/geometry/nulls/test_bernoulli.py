"""The paper's null: exact counts, anywhere alike."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.noise import noise_generator


@given(st.integers(0, 60), st.integers(0, 5))
def test_bernoulli_masks_have_exactly_the_count(changed, seed):
    mask = bernoulli_mask((5, 12), changed, noise_generator(seed))
    assert mask.shape == (5, 12) and int(mask.sum()) == changed


def test_bernoulli_masks_are_uniform():
    generator = noise_generator(0)
    hits = sum(bernoulli_mask((4, 5), 7, generator).double() for _ in range(4000)) / 4000
    assert float((hits - 0.35).abs().max()) < 4.5 * math.sqrt(0.35 * 0.65 / 4000)
