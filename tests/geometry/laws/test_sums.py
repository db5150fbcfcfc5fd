"""Null 1b's overlaps, Jaccards of two masks, and tails of sums: exact convolutions and the samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from tests.planted import tensors
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.hypergeometric import sum_of_hypergeometrics
from threegates.geometry.laws.law import DRAWN, certain, of_draws, unknown
from threegates.geometry.laws.noise import Noise, noise_of
from threegates.geometry.laws.ratio import overlap_at_scale
from threegates.geometry.laws.saddlepoint import sum_tail
from threegates.geometry.laws.two_masks import (
    jaccard_at_scales,
    jaccard_of_intersection,
    stopped_intersection,
)
from threegates.geometry.masks import jaccard
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.nulls.summaries import summarise

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("share", [0.35, 0.42, 0.55, 0.7])
def test_a_ratio_s_tail_is_exact_far_out(share):
    # One code in the target and one outside: the law of X/N is a sum over two binomials.
    noise = Noise(np.array([300.0, 500.0]), np.array([1.0, 1.6]), np.array([1.0, 1.6]))
    inside, scale = np.array([300.0, 0.0]), 0.9
    p = noise.rates(scale).p
    x, y = np.arange(301)[:, None], np.arange(501)[None]
    mass = binom.pmf(x, 300, p[0]) * binom.pmf(y, 500, p[1])
    law = overlap_at_scale(noise, inside, scale, RANDOM)
    for q in (share, 0.95 * share):
        above = (1 - q) * x - q * y >= -1e-9
        for found, true in zip(law.tail(q), (mass[above].sum(), mass[~above].sum()), strict=True):
            if 1e-13 < true < 0.999:
                assert found == pytest.approx(math.log(true), abs=0.1)


def test_sums_reach_their_ends_exactly():
    counts, p, step = np.array([4.0, 3.0]), np.array([0.3, 0.2]), np.array([1.0, -2.0])
    assert sum_tail(counts, p, step, 4.0) == pytest.approx(4 * math.log(0.3) + 3 * math.log(0.8))
    assert sum_tail(counts, p, step, 4.1) == -math.inf and sum_tail(counts, p, step, -6.0) == 0.0
    # What surely changes only moves the sum.
    assert sum_tail(np.append(counts, 2.0), np.append(p, 1.0), np.append(step, 1.0), 6.0) == pytest.approx(
        sum_tail(counts, p, step, 4.0)
    )


def test_few_expected_changes_are_drawn():
    noise = Noise(np.array([300.0, 500.0]), np.array([1.0, 1.6]), np.array([1.0, 1.6]))
    law = overlap_at_scale(noise, np.array([300.0, 0.0]), 0.4, np.random.default_rng(1))
    assert law.how == DRAWN and 0 < law.mean < 1
    assert math.isnan(overlap_at_scale(noise, np.array([300.0, 0.0]), 0.0, RANDOM).mean)


@pytest.mark.parametrize("name", ["power-law", "row-scaled", "clustered", "subnormal"])
def test_jaccards_of_two_masks_agree_with_the_samplers(name):
    base, source = tensors.family(name), noise_generator(4, name)
    codes = count_codes(base)
    noise, counts = noise_of(codes), (1200, 3500)
    scales = tuple(noise.scale_of_count(one) for one in counts)
    draws = 1000
    stopped = [jaccard(*(storage_mask_at_density(base, one, source) for one in counts)) for _ in range(draws)]
    law = jaccard_of_intersection(stopped_intersection(noise, counts), *counts)
    tensors.assert_agrees(law, np.array(stopped))
    scaled = [jaccard(*(storage_mask_at_norm(base, one, source) for one in scales)) for _ in range(draws)]
    tensors.assert_agrees(jaccard_at_scales(noise, scales), np.array(scaled))
    blind = [jaccard(*(bernoulli_mask(base.shape, one, source) for one in counts)) for _ in range(draws)]
    both = sum_of_hypergeometrics([base.numel()], [counts[0]], [counts[1]])
    tensors.assert_agrees(jaccard_of_intersection(both, *counts), np.array(blind))
    for one, drawn in ((law, stopped), (jaccard_at_scales(noise, scales), scaled)):
        for q in (0.1, 0.5, 0.9):
            point = float(np.quantile(drawn, q))
            true = float(np.mean(np.array(drawn) >= point))
            assert math.exp(one.tail(point)[0]) == pytest.approx(true, abs=4.5 * 0.5 / math.sqrt(draws))


def test_an_intersection_s_tail_is_exact_far_out_where_one_code_is_alone():
    # With one code both masks are uniform, and |M₁ ∩ M₂| is hypergeometric.
    noise = Noise(np.array([2000.0]), np.array([1.0]), np.array([1.0]))
    law = stopped_intersection(noise, (700, 500))
    exact = sum_of_hypergeometrics([2000], [700], [500])
    assert law.mean == pytest.approx(exact.mean) and law.sd == pytest.approx(exact.sd, rel=2e-3)
    for x in (120, 150, 175, 200, 230, 260):
        for found, true in zip(law.tail(x), exact.tail(x), strict=True):
            if true < -1e-6:
                assert found == pytest.approx(true, abs=0.1)


def test_a_law_of_draws_is_their_summary():
    drawn = RANDOM.normal(size=400)
    law, true = of_draws(drawn), summarise(1.3, drawn, "two-sided")
    found = law.against(1.3, "two-sided")
    assert (found.mean, found.sd, found.low, found.high) == (true.mean, true.sd, true.low, true.high)
    assert found.p == pytest.approx(true.p) and found.z == pytest.approx(true.z) and found.how == DRAWN
    assert math.isnan(of_draws(np.array([np.nan])).mean) and math.isnan(unknown().against(0.5).log10_p)
    assert certain(0.25).against(0.25).p == 1 and certain(0.25).against(0.3).log10_p == -math.inf
