"""Singular values of a product from its factors, against dense float64 decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.geometry.low_rank import singular_values_of_product


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**20), st.booleans())
def test_they_are_those_of_the_dense_product(rows, columns, rank, seed, single):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(rows, rank, generator=generator),
        torch.randn(rank, columns, generator=generator),
    )
    if not single:
        left, right = left.double() * 1e-3, right.double()
    found = singular_values_of_product(left, right)
    dense = np.linalg.svd((left.double() @ right.double()).numpy(), compute_uv=False)
    k = min(rows, columns, rank)
    assert found.dtype == torch.float64 and len(found) == k
    assert np.abs(found.numpy() - dense[:k]).max() <= 1e-13 * dense[0]
    assert (dense[k:] <= 1e-13 * dense[0]).all()


def test_values_far_apart_stay_apart():
    generator = torch.Generator().manual_seed(3)
    left, _ = torch.linalg.qr(torch.randn(300, 6, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(200, 6, generator=generator, dtype=torch.float64))
    planted = torch.tensor([1e3, 1.0, 1e-3, 1e-6, 1e-9, 0.0], dtype=torch.float64)
    found = singular_values_of_product(left * planted, right.T)
    assert torch.allclose(found, planted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 2), (5, 0, 2)])
def test_nothing_has_no_values(shape):
    rows, columns, rank = shape
    assert len(singular_values_of_product(torch.zeros(rows, rank), torch.zeros(rank, columns))) == 0
