"""Codes by target over a grid against masks of every target, and means of nulls against their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import tensors
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.masks import see
from threegates.geometry.laws.sweeps import codes_in_targets
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.precision import ETA
from threegates.geometry.principal import low_magnitude_mask, principal_mask, sweep_targets
from threegates.jobs.nulls import FOUNDING

RANKS, ALPHAS = (2, 5), (0.5, 0.05, 0.3)


@pytest.fixture(scope="module", params=["row-scaled", "power-law", "clustered"])
def grid(request):
    """A base with ties, negative zeros and its targets, alphas in no order."""
    base = tensors.family(request.param)
    base[1, :4] = -0.0
    u, s, vh = torch.linalg.svd(base.double(), full_matrices=False)
    factors = u[:, :5], s[:5], vh[:5].T.contiguous()
    return base, factors, sweep_targets(base, *factors, ranks=RANKS, alphas=ALPHAS)


def test_codes_in_targets_are_those_of_each_target_s_mask(grid):
    base, (u, s, v), targets = grid
    codes = count_codes(base)
    found = codes_in_targets(base, codes, targets)
    assert len(found) == len(RANKS) * len(ALPHAS) * 3
    values = base.double() + 0.0
    for k in RANKS:
        for alpha in ALPHAS:
            principal = principal_mask(u[:, :k], s[:k], v[:, :k], alpha)
            low = low_magnitude_mask(base, alpha)
            masks = {"principal": principal, "low": low, "principal_not_low": principal & ~low}
            for target, mask in masks.items():
                counts = [int((mask & (values == value)).sum()) for value in codes.values]
                # One entry may lie on another side of a threshold of W⁽ᵏ⁾ by rounding.
                assert np.abs(found[k, alpha, target] - counts).sum() <= (0 if target == "low" else 2)


@pytest.mark.parametrize("null", FOUNDING)
@pytest.mark.parametrize(("share", "eta"), [(0.3, None), (0.3, 5e-3), (0.001, None)])
def test_means_are_those_of_the_laws(grid, null, share, eta):
    base, _, targets = grid
    source = noise_generator(4, "sweep")
    mask = torch.rand(base.shape, generator=source) < share
    seen = see(base, mask, norm=float(base.double().norm()) * 1e-3, eta=eta)
    inside = codes_in_targets(base, seen.codes, targets)
    means = NULLS[null].law.means(seen, np.stack(list(inside.values()), axis=1))
    laws = [NULLS[null].law.overlap(seen, counts) for counts in inside.values()]
    for mean, law in zip(means, laws, strict=True):
        error = 4.5 * law.sd / 2000**0.5 if law.how == "drawn" else 0.0
        assert mean == pytest.approx(law.mean, rel=1e-9, abs=error + 1e-12)


@pytest.mark.parametrize("null", FOUNDING)
def test_a_mask_of_nothing_has_no_means_and_one_of_all_has_the_densities(grid, null):
    base, _, targets = grid
    codes = count_codes(base)
    counts = np.stack(list(codes_in_targets(base, codes, targets).values()), axis=1)
    empty = see(base, torch.zeros(base.shape, dtype=torch.bool), norm=0.0, eta=ETA)
    assert np.isnan(NULLS[null].law.means(empty, counts)).all()
    if null != "storage_norm":
        full = see(base, torch.ones(base.shape, dtype=torch.bool), norm=1.0)
        assert NULLS[null].law.means(full, counts) == pytest.approx(counts.sum(axis=0) / base.numel())
