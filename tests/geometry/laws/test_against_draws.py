"""Every law of a mask against masks of the sampler that it stands for, on tensors of many kinds."""

from __future__ import annotations

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch

from tests.planted import tensors
from threegates.geometry.laws.law import DRAWN, FIRST_ORDER, LAW
from threegates.geometry.laws.masks import of_strata, see
from threegates.geometry.laws.strata import one_stratum, quantile_strata, value_strata
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import Observed
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.precision import ETA
from threegates.geometry.stripes import dispersion
from threegates.jobs.nulls import FOUNDING

DRAWS = 2000
#: Family, share of changed weights, tolerance.
CASES = [
    ("power-law", 0.4, ETA),
    ("row-scaled", 0.05, ETA),
    ("row-scaled", 0.3, 1e-2),
    ("clustered", 0.6, ETA),
    ("subnormal", 0.97, ETA),
    ("one-row", 0.2, ETA),
]


def observed_of(name, density, eta):
    """A base with an update that leaves a mask of about that density: noise in stripes."""
    base, source = tensors.family(name), noise_generator(2, name)
    noise = torch.randn(base.shape, generator=source) * (1 + torch.arange(base.shape[0]) % 3)[:, None]
    low, high = 2.0**-140, 4.0
    for _ in range(60):
        size = (low * high) ** 0.5
        tuned = (base.double() + size * noise).bfloat16()
        share = float(update_mask(base, tuned, eta).double().mean())
        low, high = (size, high) if share < density else (low, size)
    return base, tuned


def drawn_of(null, seen, base, mask, eta):
    """Overlaps and both dispersions of masks of the null."""
    scale = seen.scale if "scale" in null.matched_to else float("nan")
    at = None if eta == ETA else eta
    found = Observed("r", "t", base, mask, seen.changed, scale, at)
    return list(islice(null.sampler(found, noise_generator(3, null.name)), DRAWS))


@pytest.mark.parametrize("null", FOUNDING)
@pytest.mark.parametrize(("name", "density", "eta"), CASES)
def test_a_law_has_the_mean_and_spread_of_its_null_s_masks(null, name, density, eta):
    base, tuned = observed_of(name, density, eta)
    mask, target = update_mask(base, tuned, eta), tensors.target(name)
    norm = float((tuned.double() - base.double()).norm())
    seen = see(base, mask, [target], norm=norm, eta=eta)
    masks = drawn_of(NULLS[null], seen, base, mask, eta)
    law = NULLS[null].law.overlap(seen, seen.inside(1))
    assert law.how == LAW
    shares = [int((m & target).count_nonzero()) / max(int(m.count_nonzero()), 1) for m in masks]
    tensors.assert_agrees(law, np.array(shares))
    if base.shape[0] == 1:
        return
    drawn = np.array([dispersion(m) for m in masks])
    for one, values in zip(NULLS[null].law.dispersions(seen, base), drawn.T, strict=True):
        tensors.assert_agrees(one, values)
        assert one.how in (LAW, FIRST_ORDER)


@pytest.mark.parametrize("strata", [quantile_strata, partial(value_strata, fewest=8), one_stratum])
@pytest.mark.parametrize(("name", "density"), [("row-scaled", 0.3), ("power-law", 0.05), ("clustered", 0.9)])
def test_a_law_follows_the_strata_that_the_sampler_is_given(strata, name, density):
    base, tuned = observed_of(name, density, ETA)
    mask, target = base != tuned, tensors.target(name)
    seen, law = see(base, mask, [target], norm=1.0), of_strata(strata)
    masks = stratified_permutations(mask, base, strata, generator=noise_generator(5, name))
    masks = list(islice(masks, DRAWS))
    shares = [int((m & target).count_nonzero()) / seen.changed for m in masks]
    tensors.assert_agrees(law.overlap(seen, seen.inside(1)), np.array(shares))
    drawn = np.array([dispersion(m) for m in masks])
    for one, values in zip(law.dispersions(seen, base), drawn.T, strict=True):
        tensors.assert_agrees(one, values)


def test_few_changes_are_drawn_or_called_first_order():
    base = tensors.family("row-scaled")
    mask = torch.zeros(base.shape, dtype=torch.bool)
    mask.reshape(-1)[::200] = True
    seen = see(base, mask, [tensors.target("row-scaled")], norm=1e-6)
    assert seen.changed < 100
    assert NULLS["storage_density"].law.overlap(seen, seen.inside(1)).how == DRAWN
    assert NULLS["storage_density"].law.dispersions(seen, base)[0].how == FIRST_ORDER
    assert NULLS["bernoulli"].law.overlap(seen, seen.inside(1)).how == LAW


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("null", FOUNDING)
@pytest.mark.parametrize("size", [2e-6, 3e-4, 5e-3])
def test_however_far_out_there_is_a_p_value(null, size):
    base = tensors.family("row-scaled")
    tuned = (base.double() + size * torch.randn(base.shape, generator=noise_generator(6))).bfloat16()
    rare = torch.rand(base.shape, generator=noise_generator(7)) < 0.01
    targets = [tensors.target("row-scaled"), rare]
    seen = see(base, base != tuned, targets, norm=float((tuned.double() - base.double()).norm()))
    for bit in (1, 2):
        law = NULLS[null].law.overlap(seen, seen.inside(bit))
        found = [law.against(share, "two-sided").log10_p for share in (0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0)]
        assert not np.isnan(found).any() and max(found) <= 0
    for law in NULLS[null].law.dispersions(seen, base):
        found = [law.against(value).log10_p for value in (0.0, 0.5, 1.0, 3.0, 50.0, 5000.0)]
        assert not np.isnan(found).any() and sorted(found, reverse=True) == found and found[-1] < -30
