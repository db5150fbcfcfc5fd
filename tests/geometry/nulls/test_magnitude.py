"""Magnitude null: counts kept in each stratum of |w|."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch

from tests.planted.planted_weights import weights
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.strata import one_stratum, quantile_strata, value_strata
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density


def labels_of(base, strata):
    """Stratum of every weight."""
    codes = count_codes(base)
    known = dict(zip(codes.values, strata(codes).of_code, strict=True))
    return torch.tensor([known[float(w) + 0.0] for w in base.flatten().double()]).reshape(base.shape)


@pytest.mark.parametrize(
    "strata", [partial(quantile_strata, bins=n) for n in (1, 7, 64, 5000)] + [value_strata, one_stratum]
)
def test_permutation_keeps_the_count_of_every_stratum(strata):
    w, generator = weights(), noise_generator(0)
    mask = storage_mask_at_density(w, 1000, generator)
    labels = labels_of(w, strata)
    for out in itertools.islice(stratified_permutations(mask, w, strata, generator=generator), 3):
        assert out.shape == mask.shape
        assert torch.equal(
            torch.bincount(labels[out], minlength=5000), torch.bincount(labels[mask], minlength=5000)
        )


def test_permutation_is_uniform_within_a_bin_and_independent_between_bins():
    w = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0]).bfloat16()
    mask = torch.tensor([True, False, False, True, False])
    stream = stratified_permutations(mask, w, partial(quantile_strata, bins=2), generator=noise_generator(0))
    seen: dict[tuple, int] = {}
    for out in itertools.islice(stream, 3000):
        key = tuple(out.tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 6
    assert sum((n - 500) ** 2 / 500 for n in seen.values()) < 20.5  # chi-square(5) above 20.5: p = .001


def test_permutations_move_entries_and_go_on():
    w = weights()
    mask = bernoulli_mask(w.shape, 900, 1)
    first, second = itertools.islice(stratified_permutations(mask, w, generator=noise_generator(2)), 2)
    assert not torch.equal(first, mask) and not torch.equal(first, second)
