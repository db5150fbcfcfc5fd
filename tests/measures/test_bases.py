"""Base matrices: how exactly they are measured, and that each is decomposed once."""

from __future__ import annotations

import pytest
import torch

from threegates.geometry.operators import WeightOperator
from threegates.measures import bases
from threegates.measures.bases import (
    REFERENCE_SIDE,
    accuracy_of,
    accuracy_within,
    base_beside_spectrum,
    base_of,
    working_type,
)
from threegates.measures.by_tensor import Shared


def matrix(rows, columns, dtype=torch.bfloat16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).to(dtype)


def test_small_sides_are_measured_by_svds_and_larger_ones_by_the_certified_engine():
    assert accuracy_of((REFERENCE_SIDE, 4096)) == "reference"
    assert accuracy_of((4096, REFERENCE_SIDE + 1)) == accuracy_of((384, 384)) == "certified"
    assert working_type(matrix(8, 300)) == torch.float64
    assert working_type(matrix(300, 300)) == torch.float32
    assert working_type(matrix(300, 300, torch.float64)) == torch.float64


@pytest.mark.parametrize(("side", "path"), [(24, "svd"), (300, "gram")])
def test_a_base_holds_what_a_float64_svd_finds(side, path):
    weight = matrix(side, side + 8)
    base = base_of(weight, 4, Shared())
    values = torch.linalg.svdvals(weight.double())
    assert base.leading.leading.path == path
    assert torch.allclose(base.leading.leading.values, values[:4], rtol=1e-10, atol=0)
    assert torch.allclose(base.spectrum.values, values, rtol=1e-7, atol=1e-7)


def test_equal_weights_of_any_type_are_decomposed_once(monkeypatch):
    calls, original = [], bases.decompose_base
    monkeypatch.setattr(bases, "decompose_base", lambda *a: calls.append(a[1:]) or original(*a))
    shared, weight = Shared(), matrix(24, 32)
    first = base_of(weight, 4, shared)
    assert base_of(weight.float(), 4, shared) is first and base_of(weight.clone(), 4, shared) is first
    assert calls == [(4, "reference")]
    assert base_of(weight, 6, shared) is not first and base_of(weight * 2, 4, shared) is not first
    assert len(calls) == 3


def test_a_base_keeps_no_gram_matrix_and_makes_one_for_certificate_and_spectrum(monkeypatch):
    made, gram = [], WeightOperator.gram
    monkeypatch.setattr(WeightOperator, "gram", lambda self, dtype: made.append(dtype) or gram(self, dtype))
    weight, shared = matrix(600, 520), Shared()
    base = base_of(weight, 4, shared, spectrum=True)
    assert made == [torch.float32, torch.float64]
    assert base_of(weight, 4, shared, spectrum=True).spectrum is base.spectrum
    assert len(made) == 2 and "exact_gram" not in vars(base.leading.operator)
    alone = base_of(weight, 4, Shared())
    assert "exact_gram" not in vars(alone.leading.operator)
    assert torch.equal(alone.spectrum.values, base.spectrum.values)


def test_beside_a_spectrum_the_float64_gram_matrix_is_the_only_one(monkeypatch):
    made, gram = [], WeightOperator.gram
    monkeypatch.setattr(WeightOperator, "gram", lambda self, dtype: made.append(dtype) or gram(self, dtype))
    weight, shared = matrix(600, 520), Shared()
    base = base_beside_spectrum(weight, 4, shared, "certified")
    assert made == [torch.float64] and "exact_gram" not in vars(base.leading.operator)
    assert base_beside_spectrum(weight, 4, shared, "certified") is base
    other = base_of(weight, 4, Shared(), spectrum=True)
    assert torch.equal(base.spectrum.values, other.spectrum.values)
    for one in (base, other):
        leading = one.leading.leading
        assert (leading.path, leading.certificate.proof) == ("gram", "cholesky") and leading.bound < 1e-5
        assert torch.allclose(leading.values, base.spectrum.values[:4], rtol=1e-12, atol=0)


def test_small_matrices_are_measured_by_svds_whatever_is_asked():
    for asked in ("fast", "certified", "reference"):
        assert accuracy_within((REFERENCE_SIDE, 4096), asked) == "reference"
        assert accuracy_within((REFERENCE_SIDE + 1, 4096), asked) == asked
    exact = base_beside_spectrum(matrix(300, 308), 4, Shared(), "reference")
    assert exact.leading.leading.path == "svd" and exact.spectrum.method == "svd"
    assert exact.weight.dtype == torch.float64
