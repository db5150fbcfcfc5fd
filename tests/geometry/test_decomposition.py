"""Leading singular triplets and certificates, against float64 SVDs; wrong methods fail the same gate."""

from __future__ import annotations

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.geometry.spectral_gate import (
    clustered,
    failures,
    fixed_set,
    perturbed,
    power_law,
    sine,
    with_spectrum,
)
from threegates.errors import GeometryError
from threegates.geometry import decomposition
from threegates.geometry.certificate import certify_window, prove_by_cholesky, residual_bounds, upper_values
from threegates.geometry.decomposition import LeadingSpectrum, decompose, update
from threegates.geometry.iteration import rayleigh_ritz
from threegates.geometry.operators import weight_operator

FIXED = fixed_set()
UPDATES = (0.0, 1e-5, 1e-3, 1e-2, 1e-1)


def finite(found: LeadingSpectrum) -> bool:
    certificate = found.certificate
    tensors = (found.values, found.left, found.right, certificate.values, certificate.left, certificate.right)
    scalars = (found.gap, found.bound, found.floor, certificate.residual)
    return all(bool(x.isfinite().all()) for x in tensors) and all(map(math.isfinite, scalars))


# --- the gate, on the fixed set and on random matrices


@pytest.mark.parametrize("accuracy", ["fast", "certified", "reference"])
@pytest.mark.parametrize("name", FIXED)
def test_every_path_passes_the_gate(name, accuracy):
    weight, k = FIXED[name]
    base = decompose(weight, k, accuracy)
    assert failures(weight, base.leading) == []
    updates = UPDATES if accuracy != "reference" else (1e-3,)
    for seed, relative in enumerate(updates):
        tuned = perturbed(weight, relative, seed)
        found = update(base, tuned, accuracy)
        assert finite(found)
        assert failures(tuned, found) == [], (relative, found.path, found.certificate.proof)


@given(
    sides=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    exponent=st.floats(0.0, 2.0),
    share=st.floats(0.0, 1.2),
    relative=st.one_of(st.just(0.0), st.floats(-6, -1).map(lambda x: 10.0**x)),
    dtype=st.sampled_from([torch.bfloat16, torch.float32, torch.float64]),
    accuracy=st.sampled_from(["fast", "certified", "reference"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100)
def test_random_matrices_pass_the_gate(sides, exponent, share, relative, dtype, accuracy, seed):
    n = min(sides)
    weight = with_spectrum(power_law(n, exponent), *sides, seed).to(dtype)
    base = decompose(weight, max(1, round(share * n / 3)), accuracy)
    tuned = perturbed(weight, relative, seed)
    found = update(base, tuned, accuracy)
    assert finite(found)
    assert failures(weight, base.leading) == [] == failures(tuned, found)


@given(
    sides=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    exponent=st.floats(0.0, 2.0),
    share=st.floats(0.0, 1.2),
    relative=st.one_of(st.just(0.0), st.floats(-6, -1).map(lambda x: 10.0**x)),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=200)
def test_random_matrices_pass_the_gate_in_float32(sides, exponent, share, relative, dtype, seed):
    # The path of large matrices, on small ones, where the oracle is cheap.
    with mock.patch.object(decomposition, "SMALL", 0):
        n = min(sides)
        weight = with_spectrum(power_law(n, exponent), *sides, seed).to(dtype)
        base = decompose(weight, max(1, round(share * n / 3)))
        tuned = perturbed(weight, relative, seed)
        found = update(base, tuned)
    assert finite(found)
    assert failures(weight, base.leading) == [] == failures(tuned, found)


@given(
    k=st.integers(4, 40),
    width=st.floats(-12, -1).map(lambda x: 10.0**x),
    relative=st.floats(-8, -1).map(lambda x: 10.0**x),
    accuracy=st.sampled_from(["fast", "certified"]),
    seed=st.integers(0, 1000),
)
def test_clusters_at_k_pass_the_gate_or_say_that_they_are_unresolved(k, width, relative, accuracy, seed):
    weight = with_spectrum(clustered(130, k, width), 140, 130, seed)
    base = decompose(weight, k, accuracy)
    tuned = perturbed(weight, relative, seed)
    found = update(base, tuned, accuracy)
    assert failures(weight, base.leading) == [] == failures(tuned, found)
    if accuracy == "certified" and found.bound > 1e-5:
        assert found.gap < 1e-3


def test_wrong_methods_fail_the_gate():
    weight, k = with_spectrum(power_law(160, 0.5), 200, 160, 0).bfloat16(), 24
    for accuracy in ("fast", "certified", "reference"):
        right_one = decompose(weight, k, accuracy).leading
        assert failures(weight, right_one) == []
        assert failures(weight, randomised(weight, right_one, seed=1)) != []
        assert failures(weight, exchanged(weight, right_one)) != []


def randomised(weight: torch.Tensor, found: LeadingSpectrum, seed: int) -> LeadingSpectrum:
    """The method not to use: a range finder with two power iterations, its seed changed."""
    generator = torch.Generator().manual_seed(seed)
    dense = weight.double()
    q = torch.randn(dense.shape[1], found.k + 10, generator=generator, dtype=torch.float64)
    for _ in range(3):
        q = torch.linalg.qr(dense.T @ (dense @ q)).Q
    left, values, turned = torch.linalg.svd(dense @ q, full_matrices=False)
    k = found.k
    return replace(found, left=left[:, :k], values=values[:k], right=(q @ turned.T)[:, :k])


def exchanged(weight: torch.Tensor, found: LeadingSpectrum) -> LeadingSpectrum:
    """u_k exchanged for u_{k+1}, values and all the rest as they should be."""
    left = found.left.clone()
    left[:, -1] = torch.linalg.svd(weight.double()).U[:, found.k]
    return replace(found, left=left)


# --- which path is taken


def power_law_pair(relative: float, n: int = 240, k: int = 32) -> tuple[torch.Tensor, torch.Tensor, int]:
    weight = with_spectrum(power_law(n, 0.5), n + 40, n, 0).bfloat16()
    return weight, perturbed(weight, relative, 1), k


@pytest.mark.parametrize(
    ("relative", "path", "proof"),
    [
        (0.0, "unchanged", "complete"),
        (1e-3, "warm", "cholesky"),
        (1e-2, "refined", "cholesky"),
        (1.0, "gram", "complete"),
    ],
)
def test_the_path_follows_the_size_of_the_update(relative, path, proof):
    weight, tuned, k = power_law_pair(relative)
    found = update(decompose(weight, k, "certified"), tuned, "certified")
    assert (found.path, found.certificate.proof) == (path, proof)
    assert found.bound <= 1e-5
    assert failures(tuned, found) == []


def test_an_equal_tensor_reuses_the_result_of_the_base():
    weight, _, k = power_law_pair(0.0)
    base = decompose(weight, k)
    found = update(base, weight.clone(), "certified")
    assert found.values is base.leading.values
    assert found.left is base.leading.left


def test_large_k_and_reference_do_not_try_the_warm_path(monkeypatch):
    monkeypatch.setattr(decomposition, "_warm", None)
    weight, tuned, _ = power_law_pair(1e-3, n=90)
    assert decompose(weight, 31).basis is None
    assert update(decompose(weight, 31), tuned).path == "gram"
    assert update(decompose(weight, 20), tuned, "reference").path == "svd"


def test_float32_gram_path_of_larger_matrices(monkeypatch):
    monkeypatch.setattr(decomposition, "SMALL", 50)
    for name in ("power law", "wide", "clustered at k", "flat", "rank below k", "zero", "float64"):
        weight, k = FIXED[name]
        for accuracy in ("fast", "certified"):
            base = decompose(weight, k, accuracy)
            assert failures(weight, base.leading) == [], name
            tuned = perturbed(weight, 3e-3, 0)
            assert failures(tuned, update(base, tuned, accuracy)) == [], name
    power = decompose(FIXED["power law"][0], 24, "certified").leading
    assert (power.path, power.certificate.proof) == ("gram", "cholesky")
    assert decompose(FIXED["power law"][0], 24).leading.certificate.proof == "assumed"


def test_weyl_is_free_where_the_gap_exceeds_the_update_and_the_base_is_proved():
    values = power_law(240, 0.5)
    values[32:] *= 0.7
    weight = with_spectrum(values, 240, 280, 0).bfloat16()
    tuned = perturbed(weight, 1e-3, 1)
    for accuracy in ("fast", "certified"):
        base = decompose(weight, 32, accuracy)
        found = update(base, tuned, accuracy)
        assert found.path in ("warm", "refined") and found.certificate.proof == "weyl"
        assert failures(tuned, found) == []
        unproved = replace(base.leading, certificate=replace(base.leading.certificate, proof="assumed"))
        again = update(replace(base, leading=unproved), tuned, accuracy)
        assert again.certificate.proof == ("assumed" if accuracy == "fast" else "cholesky")


@pytest.mark.parametrize("shape", [(240, 280), (280, 240)])
@given(room=st.floats(0.0, 2.0), height=st.integers(1, 300))
@settings(max_examples=20)
def test_a_distance_is_summed_up_no_further_than_there_is_room(shape, room, height):
    weight = with_spectrum(power_law(240, 0.5), *shape, 0).bfloat16()
    tuned, operator = perturbed(weight, 1e-3, 1), weight_operator(weight)
    whole = operator.distance(tuned)
    with mock.patch.object(decomposition, "TILE", height * shape[1]):
        found = decomposition._distance_within(operator, tuned, room * whole)
    assert (found is None) == (room <= 1)
    assert found is None or found == pytest.approx(whole, rel=1e-14)


def test_k_is_clamped_and_the_result_says_so():
    weight = with_spectrum(power_law(20, 0.5), 20, 30, 0)
    found = decompose(weight, 50).leading
    assert (found.k, found.requested, found.next_value) == (20, 50, 0.0)
    assert found.left.shape == (20, 20) and found.right.shape == (30, 20)
    assert float(found.certificate.left[-1]) == 0.0


def test_a_subspace_without_a_gap_is_unresolved():
    found = decompose(torch.eye(110, dtype=torch.bfloat16), 5, "certified").leading
    assert not found.resolved
    assert found.bound == 1.0 and found.gap == pytest.approx(0.0, abs=1e-12)
    assert float(found.certificate.values.max()) < 1e-5


# --- what the proof is for


def test_triplets_without_residual_that_miss_the_largest_value_are_not_proved():
    weight = with_spectrum(power_law(120, 0.5), 140, 120, 0)
    operator, k = weight_operator(weight), 10
    right = torch.linalg.svd(weight, full_matrices=False).Vh.T
    norm = operator.norm()
    missing = rayleigh_ritz(operator, right[:, 1:40])
    residuals = residual_bounds(operator, missing, k, norm)
    assert residuals.top < 1e-11
    assert prove_by_cholesky(operator, missing, residuals) is None
    complete = rayleigh_ritz(operator, right[:, :40])
    mu_squared = prove_by_cholesky(operator, complete, residual_bounds(operator, complete, k, norm))
    assert mu_squared is not None and 1 / 41 < mu_squared < 1 / 11


@given(
    seed=st.integers(0, 10_000),
    noise=st.floats(-9, -1).map(lambda x: 10.0**x),
    exponent=st.floats(0.1, 1.5),
    k=st.integers(1, 12),
)
def test_certificates_of_bad_triplets_still_hold(seed, noise, exponent, k):
    # Ritz triplets of a blurred subspace, μ computed exactly: every bound must cover the true error.
    weight = with_spectrum(power_law(60, exponent), 70, 60, seed)
    operator, q = weight_operator(weight), k + 8
    left, values, turned = torch.linalg.svd(weight, full_matrices=False)
    generator = torch.Generator().manual_seed(seed)
    blurred = turned.T[:, :q] + noise * torch.randn(60, q, generator=generator, dtype=torch.float64)
    ritz = rayleigh_ritz(operator, blurred)
    rest = weight - (weight @ ritz.right) @ ritz.right.T
    mu_squared = float(torch.linalg.matrix_norm(rest, 2)) ** 2 * (1 + 1e-12)
    residuals = residual_bounds(operator, ritz, k, operator.norm())
    certificate = certify_window(operator, ritz, residuals, mu_squared, "complete")
    assert bool(((values[:k] - ritz.values[:k]).abs() <= certificate.values + 1e-15).all())
    assert bool((values[: k + 1] <= certificate.upper + 1e-15).all())
    for j in range(1, k + 1):
        assert sine(turned.T[:, :j], ritz.right[:, :j]) <= float(certificate.right[j - 1]) + 1e-13
        assert sine(left[:, :j], ritz.left[:, :j]) <= float(certificate.left[j - 1]) + 1e-13


def test_upper_values_are_the_norms_of_their_two_by_two_matrices():
    a, b, mu = 0.7, 0.2, 0.5
    exact = torch.linalg.eigvalsh(torch.tensor([[a * a, a * b], [a * b, mu * mu]], dtype=torch.float64))[-1]
    found = upper_values(torch.tensor([a], dtype=torch.float64), b, mu * mu)
    assert float(found) == pytest.approx(math.sqrt(float(exact)), rel=1e-11)


def test_bounds_are_sharp_where_the_update_is_small():
    weight, tuned, k = power_law_pair(1e-3)
    found = update(decompose(weight, k, "certified"), tuned, "certified")
    left = torch.linalg.svd(tuned.double(), full_matrices=False).U[:, :k]
    assert sine(left, found.left) <= found.bound <= 20 * sine(left, found.left)


# --- refusals and side effects


def test_refusals_say_what_and_why():
    weight, _, _ = power_law_pair(0.0, n=30)
    with pytest.raises(GeometryError, match="at least one direction"):
        decompose(weight, 0)
    with pytest.raises(GeometryError, match="no such accuracy"):
        decompose(weight, 3, "exact")
    base = decompose(weight, 3)
    with pytest.raises(GeometryError, match="no such accuracy"):
        update(base, weight, "exact")
    with pytest.raises(GeometryError, match="differ in shape"):
        update(base, weight.T.contiguous())
    with pytest.raises(GeometryError, match="empty matrix"):
        decompose(torch.zeros(0, 4), 1)
    bad = weight.clone()
    bad[1, 2] = math.nan
    bad[3, 4] = -math.inf
    with pytest.raises(GeometryError, match="NaN or infinity") as caught:
        update(base, bad)
    assert "2 of 2100 entries" in str(caught.value)


def test_nothing_global_changes_and_repeats_are_bit_identical():
    weight, tuned, k = power_law_pair(1e-2)
    before = (
        weight.clone(),
        torch.get_num_threads(),
        torch.get_rng_state(),
        torch.get_float32_matmul_precision(),
    )
    first, second = (update(decompose(weight, k, "certified"), tuned, "certified") for _ in range(2))
    assert torch.equal(weight, before[0])
    assert torch.get_num_threads() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.get_float32_matmul_precision() == before[3]
    assert torch.equal(first.left, second.left) and torch.equal(first.values, second.values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("accuracy", ["fast", "certified"])
def test_the_same_gate_on_cuda(accuracy):
    weight, tuned, k = power_law_pair(1e-3)
    found = update(decompose(weight.cuda(), k, accuracy), tuned.cuda(), accuracy)
    certificate = found.certificate
    moved = replace(
        found,
        values=found.values.cpu(),
        left=found.left.cpu(),
        right=found.right.cpu(),
        certificate=replace(
            certificate,
            values=certificate.values.cpu(),
            left=certificate.left.cpu(),
            right=certificate.right.cpu(),
        ),
    )
    assert found.left.is_cuda
    assert failures(tuned, moved) == []
