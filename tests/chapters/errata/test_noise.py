"""Storage noise on made weights, against scipy, numpy and the definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from threegates.chapters.errata import noise, plots

SMALL = {"side": 64, "draws": 3}


def test_the_made_matrix_has_the_spectrum_that_it_is_said_to_have():
    weight = noise.power_law_matrix(64, 0.5, 3)
    values = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    expected = np.arange(1, 65) ** -0.5
    expected *= np.sqrt(64 / (expected**2).sum())
    assert weight.dtype == torch.bfloat16
    assert values == pytest.approx(expected, rel=0.02)


def test_an_exponent_of_zero_gives_independent_gaussian_entries():
    weight = noise.power_law_matrix(128, 0.0, 3).double().numpy()
    assert weight.std() == pytest.approx(128**-0.5, rel=0.03)
    # The largest singular value of such a matrix is near two, where a power law's is far above the rest.
    assert np.linalg.norm(weight, 2) == pytest.approx(2, rel=0.08)


def test_masks_have_the_density_asked_for_and_bernoulli_their_expectation():
    found = noise.storage_alone(**SMALL, densities=(0.25, 0.75))
    assert len(found) == 6 and set(found["draw"]) == {0, 1, 2}
    p = found["density"]
    assert found["bernoulli"].to_numpy() == pytest.approx((p * p / (2 * p - p * p)).to_numpy())
    # Of a mask, the parts on low-magnitude weights and off them make up the whole.
    assert (found["principal_overlap"] - found["principal_not_low_overlap"] >= 0).all()
    assert found["principal_density"].to_numpy() == pytest.approx(np.full(6, 0.5))


def test_the_overlap_is_that_of_a_brute_force_count():
    weight = noise.power_law_matrix(64, 0.5, 0)
    u, s, vh = np.linalg.svd(weight.double().numpy())
    low_rank = np.abs((u[:, :8] * s[:8]) @ vh[:8])
    principal = low_rank >= np.sort(low_rank, axis=None)[-64 * 32]
    from threegates.geometry.nulls.noise import noise_generator
    from threegates.geometry.nulls.storage_density import storage_mask_at_density

    mask = storage_mask_at_density(weight, 64 * 16, noise_generator(0, "storage alone", "first")).numpy()
    found = noise.storage_alone(side=64, draws=1, densities=(0.25,)).iloc[0]
    assert found["principal_overlap"] == pytest.approx((mask & principal).sum() / mask.sum())


def test_everything_changed_leaves_nothing_to_see():
    found = noise.storage_alone(**SMALL, densities=(1.0,))
    assert found["jaccard"].to_numpy() == pytest.approx(found["bernoulli"].to_numpy())
    assert found["principal_overlap"].to_numpy() == pytest.approx(found["principal_density"].to_numpy())


def test_the_figure_draws_every_density_of_every_target():
    fig = plots.noise_figure(noise.storage_alone(**SMALL, densities=(0.25, 0.5, 0.75)))
    left, right = fig.axes
    assert len(left.lines[0].get_xdata()) == 3
    assert [text.get_text() for text in right.get_legend().get_texts()] == [
        "of low magnitude",
        "principal",
        "principal, not low",
    ]
