"""p-values of laws on masks that the null itself made are uniform, and those of a planted effect are not.

Null 1b stands apart: its scale comes from the observed norm, which goes with the count, so that its p-values
are conservative; what is asked of it is that they are not too small.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from scipy import stats

from tests.planted import tensors
from threegates.geometry.laws.masks import see
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, rounded_sum
from threegates.geometry.nulls.null import Observed
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.stripes import dispersion

MASKS = 600
FIXED_COUNT = ("bernoulli", "storage_density", "magnitude")


def planted(name):
    """A base, and a mask that noise left on it."""
    base = tensors.family(name)
    scale = float(base.double().abs().median()) / 300
    return base, rounded_sum(base, gaussian_noise(base.shape, noise_generator(1, name)), scale) != base


def p_values(law, values):
    return np.array([law.against(float(value), "two-sided").p for value in values])


@pytest.mark.parametrize("null", FIXED_COUNT)
@pytest.mark.parametrize("name", ["row-scaled", "power-law", "clustered"])
def test_p_values_are_uniform_on_the_null_s_own_masks(null, name):
    base, mask = planted(name)
    target = tensors.target(name)
    seen = see(base, mask, [target], norm=1.0)
    observed = Observed("r", "t", base, mask, seen.changed, float("nan"))
    masks = list(islice(NULLS[null].sampler(observed, noise_generator(8, null)), MASKS))
    shares = [int((m & target).count_nonzero()) / seen.changed for m in masks]
    rows, columns = np.array([dispersion(m) for m in masks]).T
    laws = [NULLS[null].law.overlap(seen, seen.inside(1)), *NULLS[null].law.dispersions(seen, base)]
    for law, values in zip(laws, (shares, rows, columns), strict=True):
        if law.sd == 0:
            assert np.allclose(values, law.mean)
            continue
        assert (
            stats.kstest(tensors.filled_p(law, values, np.random.default_rng(0)), "uniform").pvalue > 1e-3
        ), law


def test_p_values_of_noise_at_equal_norm_are_not_too_small():
    base = tensors.family("row-scaled")
    target, found = tensors.target("row-scaled"), []
    for seed in range(MASKS):
        tuned = rounded_sum(base, gaussian_noise(base.shape, noise_generator(seed, "own")), 3e-4)
        norm = float((tuned.double() - base.double()).norm())
        seen = see(base, tuned != base, [target], norm=norm)
        law = NULLS["storage_norm"].law.overlap(seen, seen.inside(1))
        found.append(float(p_values(law, [int((target & (tuned != base)).sum()) / seen.changed])[0]))
    for level in (0.01, 0.05, 0.2):
        error = 4 * (level * (1 - level) / MASKS) ** 0.5
        assert np.mean(np.array(found) <= level) <= level + error


@pytest.mark.parametrize("null", FIXED_COUNT)
def test_a_planted_effect_is_told_from_every_null(null):
    base, mask = planted("power-law")
    target = tensors.target("power-law")
    avoiding = mask & ~(target & (torch.rand(base.shape, generator=noise_generator(3)) < 0.3))
    avoiding[::2] &= torch.rand(avoiding[::2].shape, generator=noise_generator(4)) < 0.3
    seen = see(base, avoiding, [target], norm=1.0)
    laws = [NULLS[null].law.overlap(seen, seen.inside(1)), NULLS[null].law.dispersions(seen, base)[0]]
    observed = int((avoiding & target).sum()) / seen.changed, dispersion(avoiding)[0]
    for law, value in zip(laws, observed, strict=True):
        assert law.against(value, "two-sided").log10_p < -3
