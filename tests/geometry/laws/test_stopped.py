"""Null 1a's overlaps: against exact quadrature far into the tails, enumeration, and the sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln, xlogy
from scipy.stats import kstest

from tests.planted import tensors
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.laws.noise import Noise, noise_of
from threegates.geometry.laws.stopped import SMALL, drawn_sums, inclusion, stopped_sum
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.storage_density import storage_mask_at_density


def few_codes(sizes, gaps):
    """Weights of a few codes, in their gaps symmetric."""
    return Noise(np.array(sizes, dtype=float), np.array(gaps), np.array(gaps))


def _masses(sizes, p):
    """P(number changed = 0 …) of independent groups."""
    out = np.ones(1)
    for size, chance in zip(sizes, p, strict=True):
        number = np.arange(size + 1)
        ways = gammaln(size + 1) - gammaln(number + 1) - gammaln(size - number + 1)
        out = np.convolve(out, np.exp(ways + xlogy(number, chance) + xlogy(size - number, 1 - chance)))
    return out


def exact_masses(noise, inside, changed):
    """P(X = k) for every k by quadrature over the log-scale of the last change."""
    inside, outside = inside.astype(int), (noise.counts - inside).astype(int)
    centre = math.log(noise.scale_of_count(changed))
    reach = min(3.0, 12 / math.sqrt(min(changed, noise.size - changed)))
    nodes, weights = np.polynomial.legendre.leggauss(300)
    k, out = np.arange(changed + 1), np.zeros(changed + 1)
    for node, weight in zip(nodes, weights, strict=True):
        rates = noise.rates(math.exp(centre + reach * node))
        for own, other, among in ((inside, outside, k), (outside, inside, changed - k)):
            others = _at(_masses(other, rates.p), changed - among)
            for group in np.flatnonzero(own):
                less = own - (np.arange(len(own)) == group)
                speed = own[group] * rates.slope[group] * weight * reach
                out += speed * _at(_masses(less, rates.p), among - 1) * others
    return out


def _at(masses, places):
    """Masses at these places; none outside."""
    held = (places >= 0) & (places < len(masses))
    return np.where(held, masses[np.where(held, places, 0)], 0.0)


@pytest.mark.parametrize(
    ("sizes", "gaps", "inside", "changed"),
    [
        ([200, 150, 100], [1.0, 2.0, 4.0], [80, 0, 100], 160),
        ([60, 400], [1.0, 2.0], [60, 100], 120),
        ([300, 300], [1.0, 1.0], [0, 150], 250),
        ([400, 40, 200], [1.0, 8.0, 64.0], [40, 40, 0], 300),
    ],
)
def test_tails_are_right_to_a_tenth_down_to_1e_12(sizes, gaps, inside, changed):
    noise, inside = few_codes(sizes, gaps), np.array(inside, dtype=float)
    masses = exact_masses(noise, inside, changed)
    assert masses.sum() == pytest.approx(1, abs=1e-9)
    law = stopped_sum(noise, inside, changed, np.random.default_rng(0))
    upper, lower = masses[::-1].cumsum()[::-1], masses.cumsum()
    looked_at = 0
    for x in range(changed + 1):
        for found, true in zip(law.tail(x), (upper[x], lower[x]), strict=True):
            if 1e-12 < true < 1 - 1e-9:
                assert found == pytest.approx(math.log(true), abs=0.1), (x, true)
                looked_at += 1
    assert looked_at > 60
    values = np.arange(changed + 1)
    mean = float(values @ masses)
    sd = math.sqrt(float(values**2 @ masses) - mean**2)
    assert law.mean == pytest.approx(mean, abs=0.02 * sd) and law.sd == pytest.approx(sd, rel=0.03)


def test_inclusion_probabilities_add_up_to_the_count_and_beat_first_order():
    noise = few_codes([60, 400], [1.0, 2.0])
    rates = noise.rates(noise.scale_of_count(120))
    found = inclusion(noise, rates)
    assert float(noise.counts @ found) == pytest.approx(120, rel=1e-12)
    masses = exact_masses(noise, np.array([60.0, 0.0]), 120)
    true = float(np.arange(121) @ masses) / 60
    assert abs(found[0] - true) < abs(rates.p[0] - true) / 3


def test_few_events_are_drawn_exactly():
    noise, inside = few_codes([30, 20, 14], [1.0, 2.0, 4.0]), np.array([10.0, 10.0, 7.0])
    for changed in (5, 57):
        masses = exact_masses(noise, inside, changed)
        drawn = drawn_sums(noise, inside[:, None], changed, 5_000, np.random.default_rng(3))[:, 0]
        found = np.bincount(drawn.astype(int), minlength=len(masses)) / len(drawn)
        assert np.abs(found - masses).max() < 4.5 * math.sqrt(0.25 / len(drawn))
    assert min(5, 64 - 57) < SMALL


def test_a_law_that_leaves_nothing_to_chance_says_so():
    noise = few_codes([30, 20], [1.0, 2.0])
    for inside, changed, value in (([0, 0], 10, 0), ([30, 20], 10, 10), ([30, 0], 0, 0), ([30, 0], 50, 30)):
        law = stopped_sum(noise, np.array(inside, dtype=float), changed, np.random.default_rng(0))
        assert (law.mean, law.sd) == (value, 0) and law.tail(value) == (0.0, 0.0)
        assert law.tail(value + 1)[0] == -math.inf and law.tail(value - 1)[1] == -math.inf


def test_p_values_of_planted_noise_are_uniform():
    base, target = tensors.family("row-scaled"), tensors.target("row-scaled")
    codes = count_codes(base, target.to(torch.uint8), 2)
    noise, inside, source = noise_of(codes), codes.with_labels(1), noise_generator(5, "planted")
    uniform = np.random.default_rng(7)
    found = []
    for _ in range(500):
        mask = storage_mask_at_density(base, 1500, source)
        upper, lower = stopped_sum(noise, inside, 1500, uniform).tail(int((mask & target).count_nonzero()))
        # A discrete p-value is uniform once its step is filled at random.
        step = math.exp(upper) + math.exp(lower) - 1
        found.append(math.exp(upper) - step * uniform.random())
    assert kstest(found, "uniform").pvalue > 1e-3
