"""Principal angles from sines: against scipy, planted rotations, and their bounds against float64 SVDs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.geometry.spectral_gate import clustered, fixed_set, perturbed, power_law, with_spectrum
from threegates.errors import GeometryError
from threegates.geometry.angles import (
    gap_aware_angles,
    principal_angles,
    resolved_rank,
    subspace_angles,
    widest_gap_rank,
)
from threegates.geometry.decomposition import decompose, update

FIXED = fixed_set()


def frame(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def oracle(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.sort(scipy.linalg.subspace_angles(base.numpy(), tuned.numpy())))


def exact_frames(weight: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    left, _, turned = torch.linalg.svd(weight.double(), full_matrices=False)
    return left[:, :k], turned[:k].T


# --- angles of two bases


@given(
    rows=st.integers(1, 60), columns=st.integers(1, 20), turn=st.floats(-15, 0.5), seed=st.integers(0, 999)
)
def test_principal_angles_are_those_of_scipy(rows, columns, turn, seed):
    columns = min(rows, columns)
    base = frame(rows, columns, seed)
    noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    tuned = torch.linalg.qr(base + 10**turn * noise).Q
    found = principal_angles(base, tuned)
    torch.testing.assert_close(found, oracle(base, tuned), atol=2e-14, rtol=1e-7)
    assert bool((found.diff() >= -1e-15).all())


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 3e-5, 0.1, math.pi / 4, 1.5, math.pi / 2])
def test_planted_angles_come_back_to_rounding(angle):
    axes = torch.eye(6, dtype=torch.float64)
    turned = math.cos(angle) * axes[:, 1] + math.sin(angle) * axes[:, 4]
    found = principal_angles(axes[:, :2], torch.stack([axes[:, 0], turned], dim=1))
    assert found.tolist() == pytest.approx([0.0, angle], rel=1e-14, abs=1e-16)


def test_cosines_in_float32_could_not_have_seen_a_small_angle():
    base = frame(50, 5, 0)
    noise = frame(50, 5, 1)
    tuned = torch.linalg.qr(base + 1e-5 * noise).Q
    found = principal_angles(base, tuned)
    cosines = torch.linalg.svdvals(base.float().T @ tuned.float()).clamp(max=1.0).double().acos()
    torch.testing.assert_close(found, oracle(base, tuned), rtol=1e-9, atol=0)
    assert float((cosines.flip(0) - found).abs().max()) > 5e-6


def test_bases_of_different_shape_are_refused():
    with pytest.raises(GeometryError, match="different shape"):
        principal_angles(frame(5, 2, 0), frame(5, 3, 0))


# --- angles of two spectra, with bounds


@pytest.mark.parametrize("accuracy", ["fast", "certified", "reference"])
@pytest.mark.parametrize("name", FIXED)
def test_the_bounds_hold_and_the_accuracy_is_met_or_denied(name, accuracy):
    weight, k = FIXED[name]
    base = decompose(weight, k, accuracy)
    for seed, relative in enumerate((0.0, 1e-4, 1e-2)):
        tuned = perturbed(weight, relative, seed)
        found = subspace_angles(base.leading, update(base, tuned, accuracy))
        exact = [
            oracle(a, b)
            for a, b in zip(exact_frames(weight, base.k), exact_frames(tuned, base.k), strict=True)
        ]
        for side, truth in zip((found.left, found.right), exact, strict=True):
            error = float((side.values - truth).abs().max())
            assert bool(side.values.isfinite().all()) and 0 <= side.floor <= max(side.bound, 1e-9)
            if found.proved:
                # The oracle has an error too: u σ₁ over the gap, where there is one.
                blur = 1e-14 * float(base.leading.values[0]) / max(found.gap, 1e-300)
                assert error <= side.bound + 2 * min(blur, math.pi)
            if accuracy == "certified" and side.bound <= 2.1e-5:
                assert error <= 2.1e-5
            if accuracy == "reference" and side.bound <= 1e-6:
                assert error <= 1e-8


def test_equal_tensors_have_angles_of_exactly_zero():
    weight, k = FIXED["power law"]
    base = decompose(weight, k)
    found = subspace_angles(base.leading, update(base, weight.clone()))
    assert found.left.maximum == found.right.mean == found.left.bound == 0.0
    assert not bool(found.left.unresolved.any())


def test_an_angle_below_its_bound_is_unresolved():
    weight, k = FIXED["power law"]
    base = decompose(weight, k, "certified")
    tuned = perturbed(weight, 1e-2, 0)
    clear = subspace_angles(base.leading, update(base, tuned, "certified"))
    assert clear.proved and clear.left.maximum > 1e-2 > 2e-5 > clear.left.bound
    assert bool((clear.left.unresolved == (clear.left.values < clear.left.bound)).all())
    assert not bool(clear.right.unresolved[-1])
    identical = with_spectrum(torch.ones(110, dtype=torch.float64), 120, 110, 0)
    flat = decompose(identical, 10, "certified")
    nothing = subspace_angles(flat.leading, update(flat, perturbed(identical, 1e-6, 0), "certified"))
    assert bool(nothing.left.unresolved.all()) and nothing.left.bound == math.pi / 2


def test_the_gap_aware_variant_steps_back_to_a_border_with_a_gap():
    k = 20
    values = clustered(140, k, 0.0)  # values 17 … 23 are equal: the last border with a gap is at 16
    weight = with_spectrum(values, 150, 140, 3)
    base = decompose(weight, k, "certified")
    leading = update(base, perturbed(weight, 1e-6, 0), "certified")
    assert resolved_rank(base.leading, leading) == k - 4
    plain, aware = subspace_angles(base.leading, leading), gap_aware_angles(base.leading, leading)
    assert aware.k == k - 4
    assert aware.left.maximum < 1e-3 < plain.left.maximum
    assert aware.gap > 1e-3 > plain.gap
    assert bool(plain.left.unresolved.all()) and not bool(aware.left.unresolved[-1])


def test_nothing_resolved_leaves_no_angle():
    zero = decompose(torch.zeros(40, 30), 3, "certified").leading
    found = gap_aware_angles(zero, zero)
    assert found.k == 0 and math.isnan(found.left.maximum) and math.isnan(found.right.mean)
    assert math.isnan(found.gap)


def test_k_can_be_smaller_but_not_larger_than_what_was_found():
    weight = with_spectrum(power_law(60, 0.5), 60, 60, 0)
    leading = decompose(weight, 12, "certified").leading
    other = decompose(perturbed(weight, 1e-2, 0), 10, "certified").leading
    assert len(subspace_angles(leading, other, 7).left.values) == 7
    with pytest.raises(GeometryError, match="no subspace of that size"):
        subspace_angles(leading, other, 11)


def test_the_widest_gap_is_looked_for_in_the_upper_half_of_the_base():
    values = torch.tensor([9.0, 5.0, 4.9, 4.0, 3.9, 3.8, 1.0, 0.9], dtype=torch.float64)
    base = decompose(torch.diag(values), 6, "reference").leading
    # The widest gap of all lies behind the first value, that of 3 … 6 behind the sixth.
    assert widest_gap_rank(base) == 6
    assert widest_gap_rank(decompose(torch.diag(values), 5, "reference").leading) == 3
    assert widest_gap_rank(decompose(torch.diag(values), 1, "reference").leading) == 1
