"""All singular values and their shift, against LAPACK in float64; products by tiles against dense ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.geometry.spectral_gate import fixed_set, perturbed, power_law, with_spectrum
from threegates.errors import GeometryError
from threegates.geometry import operators
from threegates.geometry.decomposition import decompose, update
from threegates.geometry.operators import WeightOperator, weight_operator
from threegates.geometry.spectra import normalised_spectral_shift, singular_values, spectral_shift

FIXED = fixed_set()


def exact_shift(base: torch.Tensor, tuned: torch.Tensor) -> float:
    before, after = (torch.linalg.svdvals(x.double()) for x in (base, tuned))
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("accuracy", ["fast", "certified", "reference"])
@pytest.mark.parametrize("name", FIXED)
def test_each_value_lies_within_its_error(name, accuracy):
    weight, _ = FIXED[name]
    found = singular_values(weight, accuracy)
    exact = torch.linalg.svdvals(weight.double())
    blur = 1e-15 * max(weight.shape) ** 0.5 * float(exact[0])
    assert bool(((found.values - exact).abs() <= found.errors + blur).all())
    assert bool(found.values.isfinite().all()) and bool(found.errors.isfinite().all())
    assert found.method == ("svd" if accuracy == "reference" else "gram")


@pytest.mark.parametrize("name", [name for name in FIXED if name != "zero"])
def test_the_shift_is_exact_to_1e_9_in_reference_and_within_its_error_otherwise(name):
    weight, _ = FIXED[name]
    for seed, relative in enumerate((0.0, 1e-5, 1e-3, 1e-1)):
        tuned = perturbed(weight, relative, seed)
        exact = exact_shift(weight, tuned)
        for accuracy in ("certified", "reference"):
            shift, error = spectral_shift(singular_values(weight, accuracy), singular_values(tuned, accuracy))
            assert abs(shift - exact) <= error + 1e-14
            if accuracy == "reference":
                assert abs(shift - exact) <= 1e-9
                assert error <= 1e-9
        difference = float((tuned.double() - weight.double()).norm())
        assert exact <= difference / float(weight.double().norm()) + 1e-12


def test_a_shift_of_1e_5_is_seen_to_six_digits_by_the_fast_method():
    weight = with_spectrum(power_law(150, 0.5), 200, 150, 0).bfloat16()
    tuned = perturbed(weight, 1e-3, 1)
    shift, error = spectral_shift(singular_values(weight, "fast"), singular_values(tuned, "fast"))
    assert 1e-6 < shift < 1e-3
    assert shift == pytest.approx(exact_shift(weight, tuned), rel=1e-6)
    assert error < 1e-6
    narrow = [torch.linalg.svdvals(x.float()).double() for x in (weight, tuned)]
    assert normalised_spectral_shift(*narrow) != pytest.approx(exact_shift(weight, tuned), rel=1e-6)


def test_shifts_of_zero_matrices_are_zero_or_infinite_never_nan():
    zero, one = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    assert normalised_spectral_shift(zero, zero) == 0.0
    assert normalised_spectral_shift(zero, one) == math.inf
    assert normalised_spectral_shift(one, zero) == 1.0
    spectra = [singular_values(torch.zeros(4, 3)), singular_values(torch.ones(4, 3))]
    assert spectral_shift(spectra[0], spectra[0]) == (0.0, 0.0)
    assert spectral_shift(spectra[0], spectra[1])[0] == math.inf


def test_refusals():
    weight = torch.ones(4, 3)
    with pytest.raises(GeometryError, match="taken for a shift"):
        spectral_shift(singular_values(weight), singular_values(weight, "reference"))
    with pytest.raises(GeometryError, match="different length"):
        normalised_spectral_shift(torch.ones(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    with pytest.raises(GeometryError, match="no such accuracy"):
        singular_values(weight, "float32")


# --- products by tiles


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    tile=st.sampled_from([1, 7, 64, 1 << 21]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    exponent=st.sampled_from([-90, 0, 90]),
)
def test_products_by_tiles_are_those_of_the_dense_matrix(rows, columns, tile, dtype, exponent):
    generator = torch.Generator().manual_seed(rows * 41 + columns)
    stored = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) * 2.0**exponent).to(dtype)
    whole = operators.TILE
    try:
        operators.TILE = tile
        operator = weight_operator(stored)
        dense = operator.dense()
        assert dense.shape == (operator.m, operator.n) == (max(rows, columns), min(rows, columns))
        assert torch.equal(dense * operator.unit, (stored.T if rows < columns else stored).double())
        x = torch.randn(operator.n, 3, generator=generator, dtype=torch.float64)
        y = torch.randn(operator.m, 2, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(operator.times(x), dense @ x)
        torch.testing.assert_close(operator.adjoint_times(y), dense.T @ y)
        torch.testing.assert_close(operator.times(x.float()), (dense @ x).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(operator.gram(torch.float64).tril(), (dense.T @ dense).tril())
        assert operator.norm() == pytest.approx(float(dense.norm()), rel=1e-13)
        other = perturbed(stored, 0.1, 0)
        distance = float((other.double() - stored.double()).norm()) / operator.unit
        assert operator.distance(other) == pytest.approx(distance, rel=1e-12)
    finally:
        operators.TILE = whole


def test_gram_of_several_panels_has_its_whole_lower_triangle():
    generator = torch.Generator().manual_seed(0)
    for shape in ((600, 530), (530, 600)):
        stored = torch.randn(shape, generator=generator).bfloat16()
        dense = weight_operator(stored).dense()
        found = weight_operator(stored).gram(torch.float64)
        torch.testing.assert_close(found.tril(), (dense.T @ dense).tril())


@pytest.mark.parametrize(("side", "k"), [(560, 20), (300, 20), (40, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certificate_and_spectrum_take_one_gram_matrix_and_no_bit_changes(side, k, dtype, monkeypatch):
    weight = with_spectrum(power_law(side, 0.5), side + 40, side, 0).to(dtype)
    tuned = perturbed(weight, 1e-3, 1)
    base = decompose(weight, k, "certified")
    alone = update(base, tuned, "certified"), singular_values(tuned)
    made = []
    gram = WeightOperator.gram
    monkeypatch.setattr(WeightOperator, "gram", lambda self, dtype: made.append(dtype) or gram(self, dtype))
    operator = weight_operator(tuned)
    shared = update(base, operator, "certified"), singular_values(operator)
    assert made.count(torch.float64) == 1
    assert shared[0].certificate.proof == alone[0].certificate.proof
    for name in ("values", "left", "right"):
        assert torch.equal(getattr(shared[0], name), getattr(alone[0], name))
    assert torch.equal(shared[0].certificate.right, alone[0].certificate.right)
    assert torch.equal(shared[1].values, alone[1].values)
    assert torch.equal(shared[1].errors, alone[1].errors)
    assert torch.equal(operator.exact_gram, gram(operator, torch.float64)), "it was written to"


def test_a_released_gram_matrix_is_gone_and_can_be_made_again():
    operator = weight_operator(torch.ones(4, 3))
    first = operator.exact_gram
    assert operator.exact_gram is first
    operator.release()
    operator.release()
    assert "exact_gram" not in vars(operator)
    assert torch.equal(operator.exact_gram, first)
