"""Null of emergence: a walk through storage, seen at some times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted.planted_weights import weights
from threegates.errors import GeometryError
from threegates.geometry.masks import jaccard
from threegates.geometry.nulls.noise import critical_scale, gaussian_noise, noise_generator, smallest
from threegates.geometry.nulls.paths import storage_path
from threegates.geometry.nulls.storage_density import storage_mask_at_density


def test_a_path_has_its_counts_and_each_mask_the_law_of_null_1a():
    w = weights()
    counts, times = [10, 500, 1500, 3000], [1, 2, 4, 8]
    path = storage_path(w, counts, times, 3)
    assert [int(mask.sum()) for mask in path] == counts
    alone = storage_mask_at_density(w, counts[0], 3)
    assert torch.equal(path[0], alone)


def test_the_walk_adds_increments_of_variance_equal_to_the_time_between():
    w, times = weights(), [0.5, 2.0, 6.0]
    source = noise_generator(8)
    increments = [gaussian_noise(w.shape, source).double() for _ in times]
    walk = torch.zeros(w.shape, dtype=torch.float64)
    for mask, z, time, before in zip(
        storage_path(w, [700] * 3, times, 8), increments, times, [0, *times], strict=False
    ):
        walk += (time - before) ** 0.5 * z
        assert torch.equal(mask, smallest(critical_scale(w, walk), 700))


def test_masks_of_a_path_agree_while_times_are_near_and_forget_each_other_later():
    w, count = weights(), 800
    near, far, apart = ([], [], [])
    for seed in range(20):
        first, second, third = storage_path(w, [count] * 3, [1.0, 1.1, 50.0], noise_generator(seed, "path"))
        near.append(jaccard(first, second))
        far.append(jaccard(first, third))
        apart.append(jaccard(first, storage_mask_at_density(w, count, noise_generator(seed, "apart"))))
    assert np.mean(near) > np.mean(far) + 0.2
    assert np.mean(far) == pytest.approx(np.mean(apart), abs=0.02)


@pytest.mark.parametrize(("counts", "times"), [([1], [1, 2]), ([1, 1], [2, 1]), ([1], [0]), ([1, 1], [1, 1])])
def test_times_ascend_and_have_a_count_each(counts, times):
    with pytest.raises(GeometryError, match=r"(?s)count and a later time.*counts at times"):
        storage_path(weights(), counts, times, 0)


def test_a_walk_is_seen_through_the_tolerance_that_is_asked_for():
    base = torch.randn(64, 64, generator=torch.Generator().manual_seed(8)).to(torch.bfloat16)
    (fine,), (coarse,) = (storage_path(base, [900], [1.0], 5, eta=eta) for eta in (1e-3, 1e-2))
    assert int(fine.sum()) == int(coarse.sum()) == 900 and not torch.equal(fine, coarse)
