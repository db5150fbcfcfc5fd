"""Masks of runs beside nulls: drawn ones beside laws, p-values on planted noise, tolerances and streams."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from tests.planted import tensors
from threegates.geometry.laws.law import DRAWN, LAW
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, rounded_sum
from threegates.geometry.nulls.null import NullOfLaw
from threegates.geometry.nulls.table import NULLS
from threegates.measures import null_laws
from threegates.measures.null_laws import MaskBeside, jaccard_law

EVERY = pytest.mark.parametrize("null", NULLS.values(), ids=NULLS)


def run_of(name, scale, run="r", seed=0, eta=None):
    """A run of noise that is larger in some rows."""
    base = tensors.family(name)
    noise = gaussian_noise(base.shape, noise_generator(seed, run)) * (
        1 + torch.arange(len(base))[:, None] % 3
    )
    tuned = rounded_sum(base, noise, scale)
    norm = float((tuned.double() - base.double()).norm())
    mask = update_mask(base, tuned) if eta is None else update_mask(base, tuned, eta)
    return MaskBeside(run, "t", base, mask, (), norm, seed, eta), tuned


def without_law(null):
    return NullOfLaw(**{f.name: getattr(null, f.name) for f in dataclasses.fields(NullOfLaw)} | {"law": None})


@EVERY
def test_a_null_without_a_law_is_drawn_and_agrees_with_its_law(null):
    one, other = (run_of("row-scaled", 2e-5, run)[0] for run in ("a", "b"))
    drawn, law = jaccard_law(one, other, without_law(null)), jaccard_law(one, other, null)
    assert (drawn.how, law.how) == (DRAWN, LAW)
    assert abs(drawn.mean - law.mean) < 4.5 * law.sd / np.sqrt(null_laws.DRAWS)
    assert drawn.sd == pytest.approx(law.sd, rel=0.25)
    masks, counts = one.line_ranks(without_law(null)), one.line_ranks(null)
    for drawn_ranks, ranks, m in zip(masks, counts, one.base.shape, strict=True):
        assert drawn_ranks.shape == (null_laws.DRAWS, m) and ranks.shape == (null_laws.LINE_DRAWS, m)


@pytest.mark.parametrize("name", ["bernoulli", "storage_density", "magnitude"])
def test_p_values_of_agreement_are_uniform_on_masks_that_the_null_made(name):
    null, (run, _) = NULLS[name], run_of("power-law", 3e-5)
    # Another count for the other run, that of noise of another scale.
    other, _ = run_of("power-law", 8e-5, "s")
    law, found = jaccard_law(run, other, null), []
    for mask, beside in zip(run.masks(null), other.masks(null), strict=False):
        both, either = int((mask & beside).sum()), int((mask | beside).sum())
        found.append(10 ** law.against(both / either).log10_p)
        if len(found) == 500:
            break
    assert kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("eta", [5e-3, 1e-2])
def test_another_tolerance_is_another_mask_and_the_same_noise(eta):
    (run, tuned), (fresh, _) = run_of("power-law", 1e-4), run_of("power-law", 1e-4, eta=eta)
    moved = run.at(eta, update_mask(run.base, tuned, eta))
    assert moved.seen.scale == run.seen.scale == fresh.seen.scale
    assert moved.seen.changed < run.seen.changed and torch.equal(moved.mask, fresh.mask)
    for null in NULLS.values():
        laws = zip(moved.dispersions(null), fresh.dispersions(null), strict=True)
        assert all((a.mean, a.sd) == (b.mean, b.sd) for a, b in laws)
        assert torch.equal(next(moved.masks(null)), next(fresh.masks(null)))


def test_counts_of_lines_repeat_and_each_run_and_null_has_its_own():
    run, again = (run_of("power-law", 1e-4)[0] for _ in range(2))
    other = dataclasses.replace(run, run="s")
    null = NULLS["storage_density"]
    first = run.line_ranks(null)
    for axis in (0, 1):
        assert np.array_equal(first[axis], again.line_ranks(null)[axis], equal_nan=True)
        assert not np.array_equal(first[axis], other.line_ranks(null)[axis])
        # The nulls' own ones too: else a run's counts under two nulls would go together.
        assert not np.array_equal(first[axis], run.line_ranks(NULLS["bernoulli"])[axis])
