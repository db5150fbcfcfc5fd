"""Two masks of null 1a on two bases: masks of the sampler, and the law on one base."""

from __future__ import annotations

import math
from itertools import combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.planted import tensors
from threegates.geometry.laws.masks import see
from threegates.geometry.laws.two_bases import chances_at_count, intersection_moments
from threegates.geometry.laws.two_masks import mean_jaccard, stopped_intersection
from threegates.geometry.masks import jaccard
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density

DRAWS = 2000


def seen_of(base, changed):
    """A base with a mask of so many entries; which they are, the null does not ask."""
    mask = (torch.arange(base.numel()) < changed).reshape(base.shape)
    return see(base, mask, norm=math.nan)


def chances_of(base, changed):
    return chances_at_count(seen_of(base, changed), base)


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ("power-law", "row-scaled", (2400, 3000)),
        ("row-scaled", "subnormal", (300, 6000)),
        ("clustered", "power-law", (4000, 150)),
    ],
)
def test_on_two_bases_moments_are_those_of_masks(first, second, counts):
    bases, source = [tensors.family(name) for name in (first, second)], noise_generator(5, first, second)
    masks = [
        [storage_mask_at_density(base, changed, source) for _ in range(DRAWS)]
        for base, changed in zip(bases, counts, strict=True)
    ]
    both = np.array([float((a & b).sum()) for a, b in zip(*masks, strict=True)])
    mean, variance = intersection_moments(*map(chances_of, bases, counts))
    tensors.assert_agrees(SimpleNamespace(mean=mean, sd=math.sqrt(variance), how="law"), both)
    index = np.array([jaccard(a, b) for a, b in zip(*masks, strict=True)])
    found = mean_jaccard(mean, variance, sum(counts))
    assert abs(found - index.mean()) <= 4.5 * index.std(ddof=1) / math.sqrt(DRAWS)


@pytest.mark.parametrize("name", sorted(tensors.FAMILIES))
@pytest.mark.parametrize("counts", [(700, 2500), (3900, 120)])
def test_on_one_base_the_law_is_that_of_its_codes(name, counts):
    base = tensors.family(name)
    law = stopped_intersection(seen_of(base, 1).noise, counts)
    mean, variance = intersection_moments(*(chances_of(base, one) for one in counts))
    assert mean == pytest.approx(law.mean, rel=1e-9) and math.sqrt(variance) == pytest.approx(
        law.sd, rel=1e-7
    )


def test_inclusion_adds_up_to_the_count_and_an_empty_or_full_mask_is_certain():
    base = tensors.family("power-law")
    some = chances_of(base, 2000)
    assert float(some.inclusion.sum()) == pytest.approx(2000) and some.inclusion.shape == base.shape
    size = base.numel()
    for changed in (0, size):
        mean, variance = intersection_moments(some, chances_of(base, changed))
        assert mean == pytest.approx(2000 if changed else 0, abs=1e-6) and variance < 1e-6
    assert math.isnan(mean_jaccard(0.0, 0.0, 0))


def test_a_mean_jaccard_of_few_entries_is_nearly_that_of_all_pairs_of_masks():
    masks = [set(one) for one in combinations(range(12), 5)][::7]
    both = np.array([len(a & b) for a, b in product(masks, masks)], dtype=float)
    true = float((both / (10 - both)).mean())
    assert mean_jaccard(both.mean(), both.var(), 10) == pytest.approx(true, rel=0.02)
