"""Energy in the principal block, random frames, stable rank: against numpy, algebra, planted directions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from threegates.errors import GeometryError
from threegates.geometry import directions
from threegates.geometry.directions import (
    expected_energy,
    principal_energy,
    random_frame,
    rotation_draws,
    rotation_null,
    spectral_norm,
    stable_rank,
)
from threegates.geometry.nulls.noise import noise_generator


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng([seed, *shape]).standard_normal(shape))


# --- energy


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_energy_is_that_of_numpy(shape, dtype, floor):
    delta, u, v = gaussian(*shape).to(dtype), random_frame(shape[0], 4, 1), random_frame(shape[1], 4, 2)
    d = delta.double().numpy()
    expected = np.linalg.norm(u.numpy().T @ d @ v.numpy()) ** 2 / np.linalg.norm(d) ** 2
    assert principal_energy(delta, u, v) == pytest.approx(expected, rel=floor)


def test_bf16_updates_are_taken_as_they_are_stored():
    delta = gaussian(20, 30).bfloat16()
    u, v = random_frame(20, 3, 1), random_frame(30, 3, 2)
    assert principal_energy(delta, u, v) == pytest.approx(principal_energy(delta.double(), u, v), rel=1e-6)


@given(st.integers(0, 20), st.integers(1, 6), st.floats(1e-12, 1e6))
def test_energy_knows_spans_only_and_no_scale(seed, k, scale):
    delta, u, v = gaussian(10, 14, seed=seed), random_frame(10, k, seed), random_frame(14, k, seed + 1)
    turn, left, right = random_frame(k, k, 3), random_frame(10, 10, 4), random_frame(14, 14, 5)
    energy = principal_energy(delta, u, v)
    assert 0 <= energy <= 1
    assert principal_energy(scale * delta, u @ turn, v @ turn.T) == pytest.approx(energy, rel=1e-9)
    assert principal_energy(left @ delta @ right.T, left @ u, right @ v) == pytest.approx(energy, rel=1e-9)


def test_energy_at_its_ends():
    u, v = random_frame(10, 3, 0), random_frame(12, 3, 1)
    inside = u @ gaussian(3, 3) @ v.T
    assert principal_energy(inside, u, v) == pytest.approx(1)
    outside = gaussian(10, 12) - u @ (u.T @ gaussian(10, 12))
    assert principal_energy(outside, u, v) == pytest.approx(0, abs=1e-25)
    assert math.isnan(principal_energy(torch.zeros(10, 12), u, v))


# --- random frames


@given(st.integers(1, 20), st.data())
def test_frames_are_orthonormal(side, data):
    k = data.draw(st.integers(1, side))
    frame = random_frame(side, k, 5)
    assert frame.shape == (side, k)
    assert float((frame.T @ frame - torch.eye(k)).abs().max()) < 1e-13


def test_frames_are_uniform():
    # The first row of a uniform frame has squared length Beta(k/2, (n − k)/2) distributed.
    source = noise_generator(0, "frames")
    lengths = [float(random_frame(7, 2, source)[0].square().sum()) for _ in range(500)]
    assert stats.kstest(lengths, stats.beta(1, 2.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(8, 30), (20, 20)])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_expectation_is_exact_for_any_update(shape, k):
    delta = gaussian(shape[0], 1) @ gaussian(1, shape[1], seed=1) + 0.1 * gaussian(*shape)
    draws = rotation_draws(delta, k, 7, draws=1500)
    error = draws.std() / math.sqrt(1500)
    assert draws.mean() == pytest.approx(expected_energy(shape, k), abs=4.5 * error + 1e-12)


# --- rotation null


def test_p_values_of_directionless_updates_are_uniform():
    k, ranks = 3, []
    for repetition in range(160):
        base = torch.linalg.svd(gaussian(16, 24, seed=repetition), full_matrices=False)
        delta = gaussian(16, 24, seed=1000 + repetition)
        source = noise_generator(repetition, "rotation")
        u, v = base.U[:, :k], base.Vh[:k].T
        ranks.append(rotation_null(delta, u, v, source, draws=39, tail="upper")[1].p)
    counts = np.bincount((np.array(ranks) * 8 - 1e-9).astype(int), minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("weight", "sign"), [(0.2, -1), (3.0, 1)])
def test_planted_avoidance_and_concentration_are_detected(weight, sign):
    k, delta = 8, gaussian(64, 96)
    u, v = random_frame(64, k, 1), random_frame(96, k, 2)
    planted = delta + (weight - 1) * u @ (u.T @ delta @ v) @ v.T
    observed, summary = rotation_null(planted, u, v, 3, draws=99)
    assert sign * summary.z > 4
    assert summary.p == pytest.approx(2 / 100)
    assert sign * (observed - expected_energy((64, 96), k)) > 0


def test_the_null_repeats_and_asks_for_enough_frames():
    delta = gaussian(10, 12)
    assert np.array_equal(rotation_draws(delta, 2, 5, draws=20), rotation_draws(delta, 2, 5, draws=20))
    assert np.isnan(rotation_draws(torch.zeros(10, 12), 2, 5)).all()
    with pytest.raises(GeometryError, match=r"(?s)too few random frames.*at least 20.*19"):
        rotation_draws(delta, 2, 5, draws=19)
    for k in (0, 11):
        with pytest.raises(GeometryError, match="no k × k block"):
            rotation_draws(delta, k, 5)
    with pytest.raises(GeometryError, match=r"(?s)no such frame.*1 … 4 columns.*5"):
        random_frame(4, 5, 0)


# --- norms


@pytest.mark.parametrize("dense_side", [256, 4])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (30, 30), (8, 50)])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e150])
def test_spectral_norms_are_those_of_numpy(monkeypatch, shape, dense_side, scale):
    monkeypatch.setattr(directions, "DENSE_SIDE", dense_side)
    for power in (0, 1):
        a = gaussian(*shape) * torch.arange(1, shape[1] + 1).double() ** -power
        assert spectral_norm(scale * a) == pytest.approx(scale * np.linalg.norm(a.numpy(), 2), rel=1e-10)


def test_spectral_norms_of_clusters_and_nothing(monkeypatch):
    monkeypatch.setattr(directions, "DENSE_SIDE", 4)
    assert spectral_norm(3 * random_frame(30, 20, 0)) == pytest.approx(3, rel=1e-12)
    assert spectral_norm(torch.zeros(9, 9)) == spectral_norm(torch.zeros(0, 9)) == 0
    assert spectral_norm(torch.ones(1, 7)) == pytest.approx(math.sqrt(7))
    with pytest.raises(GeometryError, match="NaN or infinity has no norm"):
        spectral_norm(torch.tensor([[1.0, math.nan]]))


def test_stable_rank_by_hand():
    assert stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(6 / 4)
    assert stable_rank(random_frame(12, 5, 0)) == pytest.approx(5)
    assert stable_rank(gaussian(9, 1) @ gaussian(1, 11)) == pytest.approx(1)
    assert math.isnan(stable_rank(torch.zeros(3, 4)))
