"""What every null's law keeps: uniform p on the null's own masks, power, no order of the weights."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from tests.planted import tensors
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.nulls.table import NULLS
from threegates.geometry.stripes import dispersion

WITH_LAW = {name: null for name, null in NULLS.items() if null.law}
EVERY = pytest.mark.parametrize("null", WITH_LAW.values(), ids=WITH_LAW)
SHAPE, NORM, MASKS = (48, 96), 0.02, 600


def planted_base() -> torch.Tensor:
    """Weights on few codes, so that many are alike; some rows are larger than others."""
    source = noise_generator(0, "a base of few codes")
    wide = 0.02 * torch.randn(SHAPE, generator=source) * (0.5 + torch.rand(SHAPE[0], 1, generator=source))
    return (wide.bfloat16().view(torch.int16) & ~0xF).view(torch.bfloat16)


BASE = planted_base()
TARGET = (BASE.abs() < BASE.abs().median()) & (torch.rand(SHAPE, generator=noise_generator(0, "t")) < 0.6)
MASK = torch.rand(SHAPE, generator=noise_generator(0, "m")) < 0.1 + 0.4 * (BASE.abs() < 0.01)


def seen_of(base=BASE, mask=MASK, target=TARGET) -> Seen:
    return see(base, mask, [target], norm=NORM)


def masks_of(null: Null) -> list[torch.Tensor]:
    observed = Observed("run", "w", BASE, MASK, int(MASK.sum()), seen_of().scale)
    return list(islice(null.sampler(observed, noise_generator(1, "masks", null.name)), MASKS))


def overlap(mask: torch.Tensor) -> float:
    return float((mask & TARGET).sum() / mask.sum())


@EVERY
def test_p_values_are_uniform_on_masks_of_the_null_itself(null):
    """Overlaps come in steps, so that p is drawn evenly within the chance of its own step."""
    seen, masks = seen_of(), masks_of(null)
    law, even = null.law.overlap(seen, seen.inside(1)), np.random.default_rng(0)
    assert kstest(tensors.filled_p(law, map(overlap, masks), even), "uniform").pvalue > 1e-3
    found = np.array([dispersion(mask) for mask in masks])
    for of_axis, values in zip(null.law.dispersions(seen, BASE), found.T, strict=True):
        assert kstest([of_axis.against(one).p for one in values], "uniform").pvalue > 1e-3


def among_equals(first: torch.Tensor) -> torch.Tensor:
    """As many weights of each code as the mask has, and those first of which `first` is least."""
    moved = torch.zeros(BASE.numel(), dtype=torch.bool)
    for code in BASE.unique():
        alike = torch.nonzero((code == BASE).reshape(-1)).reshape(-1)
        order = alike[torch.argsort(first.reshape(-1)[alike], stable=True)]
        moved[order[: int(MASK.reshape(-1)[alike].sum())]] = True
    return moved.reshape(SHAPE)


@EVERY
def test_an_effect_that_is_planted_among_equal_weights_is_far_out(null):
    """No null can tell them apart: its law stays as it was, and what was planted lies far from it."""
    into, rows = among_equals((~TARGET).float()), among_equals(torch.arange(SHAPE[0]).repeat(SHAPE[1], 1).T)
    for planted in (into, rows):
        assert planted.sum() == MASK.sum()
        before, after = (
            null.law.overlap(seen_of(mask=mask), seen_of().inside(1)) for mask in (MASK, planted)
        )
        assert (before.mean, before.sd) == (after.mean, after.sd)
    law = null.law.overlap(seen_of(), seen_of().inside(1))
    assert law.against(overlap(into), "two-sided").log10_p < -8
    of_rows, of_columns = null.law.dispersions(seen_of(), BASE)
    across, along = dispersion(rows)
    assert of_rows.against(across).log10_p < -8 and along < 3 * of_columns.high


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_a_law_does_not_hang_on_the_order_of_the_weights(null, seed):
    order = torch.randperm(BASE.numel(), generator=torch.Generator().manual_seed(seed))
    moved = [x.reshape(-1)[order].reshape(SHAPE) for x in (BASE, MASK, TARGET)]
    one, other = (null.law.overlap(seen, seen.inside(1)) for seen in (seen_of(), seen_of(*moved)))
    assert (one.mean, one.sd, one.low, one.high) == (other.mean, other.sd, other.low, other.high)
    assert one.tail(overlap(MASK)) == other.tail(overlap(MASK))
    lines = [torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in SHAPE]
    swapped = [x[lines[0]][:, lines[1]] for x in (BASE, MASK, TARGET)]
    laws = null.law.dispersions(seen_of(), BASE), null.law.dispersions(seen_of(*swapped), swapped[0])
    for mine, theirs in zip(*laws, strict=True):
        numbers = [(law.mean, law.sd, *law.tail(1.5 * law.mean)) for law in (mine, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
