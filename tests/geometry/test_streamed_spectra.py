"""Spectra of tall matrices from sums over their rows, against float64 SVDs and exact planted subspaces."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.geometry.spectral_gate import power_law, with_spectrum
from threegates.errors import GeometryError
from threegates.geometry import streamed_spectra
from threegates.geometry.streamed_spectra import GramSum, SmallSide, right_angles, small_side


def streamed(weight: torch.Tensor, k: int, pieces: int = 3) -> SmallSide:
    total = GramSum(weight.shape[1])
    for rows in weight.chunk(pieces):
        total.add(rows)
    assert total.rows == len(weight)
    return small_side(total.whole(), len(weight), k)


@given(
    sides=st.tuples(st.integers(1, 40), st.integers(0, 60)),
    exponent=st.floats(0.0, 2.0),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    panel=st.integers(1, 50),
    pieces=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_values_and_subspaces_lie_within_their_bounds(sides, exponent, dtype, panel, pieces, seed):
    n, rows = sides[0], sum(sides)
    weight = with_spectrum(power_law(n, exponent), rows, n, seed).to(dtype)
    k = max(1, n // 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed_spectra, "PANEL", panel)
        found = streamed(weight, k, pieces)
    _, values, turned = torch.linalg.svd(weight.double(), full_matrices=False)
    assert (found.spectrum.values - values).abs().le(found.spectrum.errors + 1e-14).all()
    sine = torch.linalg.matrix_norm(found.right - turned[:k].T @ (turned[:k] @ found.right), 2)
    assert float(sine) <= found.sine + 1e-12
    gap = values[k - 1] - (values[k] if k < n else 0)
    assert found.gap == pytest.approx(float(gap), abs=float(2 * found.spectrum.errors.max()) + 1e-14)


def test_bounds_are_sharp_where_there_is_a_gap_and_say_nothing_where_there_is_none():
    values = power_law(40, 0.5)
    values[8:] *= 0.5
    assert streamed(with_spectrum(values, 200, 40, 0), 8).sine < 1e-10
    assert streamed(torch.eye(40), 8).sine == 1
    assert streamed(torch.eye(40), 40).sine < 1e-11


def test_angles_are_scipys_within_their_bound_and_those_of_one_side_are_nothing():
    values = power_law(40, 0.5)
    values[8:] *= 0.7
    weight = with_spectrum(values, 200, 40, 0)
    tuned = weight + 1e-3 * torch.randn(
        200, 40, generator=torch.Generator().manual_seed(0), dtype=weight.dtype
    )
    one, other = streamed(weight, 8), streamed(tuned, 8)
    angles = right_angles(one, other)
    first, second = (torch.linalg.svd(side)[2][:8].T.numpy() for side in (weight, tuned))
    exact = scipy.linalg.subspace_angles(first, second)[::-1]
    assert abs(angles.values.numpy() - exact).max() <= angles.bound < 1e-9 < exact[0]
    assert 0 < angles.floor < angles.bound
    same = right_angles(one, one)
    assert (same.maximum, same.bound, same.floor) == (0, 0, 0)


def test_a_rank_beyond_the_side_is_refused():
    for k in (0, 5):
        with pytest.raises(GeometryError, match="no leading subspace"):
            streamed(torch.eye(4), k)
