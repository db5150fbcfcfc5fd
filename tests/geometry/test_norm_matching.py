"""Scaled updates: exact norms before rounding, one rounding after, and the direction kept."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import GeometryError
from threegates.geometry.norm_matching import gaussian_of_norm, match_norm
from threegates.geometry.nulls.noise import gaussian_noise
from threegates.geometry.precision import to_bf16


def weights(shape=(20, 30), seed: int = 0) -> torch.Tensor:
    return to_bf16(0.05 * gaussian_noise(shape, seed))


def moved(base: torch.Tensor, size: float = 1e-4) -> torch.Tensor:
    return base.float() + size * gaussian_noise(base.shape, 9)


@given(st.floats(1e-30, 1e6), st.integers(0, 5))
def test_the_update_has_the_norm_and_the_direction(norm, seed):
    base = weights(seed=seed)
    master = moved(base)
    found = match_norm(base, master, norm)
    delta = master.double() - base.double()
    assert found.factor * float(delta.norm()) == pytest.approx(norm, rel=1e-12)
    # The sum with the base rounds in float64: that is the floor of what can be read back from it.
    floor = 1e-16 * float(found.unrounded.norm())
    assert float((found.unrounded - base.double()).norm()) == pytest.approx(norm, rel=1e-9, abs=floor)
    assert torch.equal(found.unrounded, base.double() + found.factor * delta)


def test_its_own_norm_gives_the_master_back():
    base = weights()
    master = moved(base)
    found = match_norm(base, master, float((master.double() - base.double()).norm()))
    assert torch.allclose(found.unrounded, master.double(), rtol=1e-14, atol=0)
    assert torch.equal(found.rounded, to_bf16(master))


def test_storage_rounds_once():
    # By way of float32 this sum would first become a midpoint and then an even code: 1.
    base = torch.ones(1).bfloat16()
    found = match_norm(base, base.float() + 1, 2**-8 + 2**-40)
    assert float(found.rounded) == 1 + 2**-7
    assert found.stored_norm(base) == 2**-7


def test_storage_swallows_small_updates():
    base = weights()
    small, large = (match_norm(base, moved(base), norm) for norm in (1e-9, 10.0))
    assert small.stored_norm(base) == 0
    assert torch.equal(small.rounded, base)
    assert large.stored_norm(base) == pytest.approx(10, rel=1e-2)


def test_zero_is_a_norm():
    base = weights()
    for found in (match_norm(base, moved(base), 0), match_norm(base, base.float(), 0)):
        assert found.factor == 0
        assert torch.equal(found.unrounded, base.double())


def test_gaussian_updates_have_the_norm_exactly_and_no_memory_of_the_seed_but_the_seed():
    base = weights()
    found = gaussian_of_norm(base, 0.3, 4)
    assert float((found.unrounded - base.double()).norm()) == pytest.approx(0.3, rel=1e-12)
    assert torch.equal(found.rounded, to_bf16(found.unrounded))
    noise = gaussian_noise(base.shape, 4).double()
    assert torch.allclose(found.unrounded - base.double(), 0.3 * noise / noise.norm(), atol=1e-15)
    assert not torch.equal(found.rounded, gaussian_of_norm(base, 0.3, 5).rounded)


def test_tiny_updates_keep_their_squares():
    base = torch.zeros(4, 4).bfloat16()
    found = match_norm(base, 1e-38 * torch.ones(4, 4), 1.0)
    assert found.unrounded.tolist() == [[pytest.approx(0.25)] * 4] * 4
    doubles = match_norm(base.double(), 1e-300 * torch.ones(4, 4, dtype=torch.float64), 1.0)
    assert doubles.unrounded.tolist() == [[pytest.approx(0.25)] * 4] * 4


@pytest.mark.parametrize("norm", [-1.0, math.inf, math.nan])
def test_impossible_norms_are_refused(norm):
    with pytest.raises(GeometryError, match="finite norm"):
        match_norm(weights(), moved(weights()), norm)


def test_updates_that_cannot_be_scaled_are_refused():
    base = weights()
    with pytest.raises(GeometryError, match=r"(?s)zero update cannot be scaled.*norm of 1.0"):
        match_norm(base, base.float(), 1.0)
    for bad in (math.nan, math.inf):
        broken = moved(base)
        broken[0, 0] = bad
        with pytest.raises(GeometryError, match="has no norm"):
            match_norm(base, broken, 1.0)
        with pytest.raises(GeometryError, match="NaN or infinity"):
            gaussian_of_norm(broken, 1.0, 0)
        with pytest.raises(GeometryError, match="NaN or infinity"):
            gaussian_of_norm(broken.bfloat16(), 1.0, 0)
