"""Magnitude null: bins by quantiles, counts kept in each."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.planted.planted_weights import weights
from threegates.errors import GeometryError
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import magnitude_bins, stratified_permutations
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.precision import bf16_from_codes


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 9))
def test_bins_are_quantiles_and_ties_share_one(levels, bins):
    w = torch.tensor(levels).bfloat16() * (1 - 2 * (torch.arange(len(levels)) % 2))
    oracle = [sum(other < level for other in levels) * bins // len(levels) for level in levels]
    assert magnitude_bins(w, bins).tolist() == oracle


def test_distinct_magnitudes_fill_bins_evenly():
    w = bf16_from_codes(torch.arange(6400, dtype=torch.int32).reshape(64, 100))
    assert torch.bincount(magnitude_bins(w, 64).flatten()).tolist() == [100] * 64


@pytest.mark.parametrize("bins", [1, 7, 64, 5000])
def test_permutation_keeps_the_count_of_every_bin(bins):
    w, generator = weights(), noise_generator(0)
    mask = storage_mask_at_density(w, 1000, generator)
    labels = magnitude_bins(w, bins)
    for out in itertools.islice(stratified_permutations(mask, w, bins, generator=generator), 3):
        assert out.shape == mask.shape
        assert torch.equal(
            torch.bincount(labels[out], minlength=bins), torch.bincount(labels[mask], minlength=bins)
        )


def test_permutation_is_uniform_within_a_bin_and_independent_between_bins():
    w = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0]).bfloat16()
    mask = torch.tensor([True, False, False, True, False])
    stream = stratified_permutations(mask, w, 2, generator=noise_generator(0))
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


def test_bins_are_counted_from_one():
    with pytest.raises(GeometryError, match="counted from one"):
        magnitude_bins(weights(), 0)
