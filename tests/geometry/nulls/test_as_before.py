"""Samplers against the dispatches that stood before the table: the same bits from the same streams.

Released records were measured with these: a sampler that draws otherwise does not give their numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.planted.planted_weights import weights
from threegates.geometry.nulls.bernoulli import bernoulli_mask
from threegates.geometry.nulls.magnitude import stratified_permutations
from threegates.geometry.nulls.noise import gaussian_noise, noise_generator, scale_to_pass, smallest
from threegates.geometry.nulls.null import Observed
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.nulls.storage_norm import storage_mask_at_norm
from threegates.geometry.nulls.table import nulls_named
from threegates.geometry.precision import ETA, gaps_beyond
from threegates.jobs.nulls import FOUNDING

SHAPES = ((48, 64), (7, 129), (1, 1), (33,), (0, 4))
DENSITIES = (0.0, 0.02, 0.37, 0.9, 1.0)
CASES = pytest.mark.parametrize(("shape", "density"), list(itertools.product(SHAPES, DENSITIES)))


def observed_of(shape: tuple[int, ...], density: float, seed: int, eta: float | None) -> Observed:
    size = torch.Size(shape).numel()
    base = weights(1, max(size, 1), seed)[0, :size].reshape(shape)
    changed = round(density * size)
    mask = bernoulli_mask(shape, changed, noise_generator(seed, "observed", str(shape)))
    return Observed("run", "tensor", base, mask, changed, 10 ** (-4 + 2 * density), eta)


def coarse_storage(kind: str, one: Observed, eta: float, source: torch.Generator) -> Callable[[], Tensor]:
    gaps = gaps_beyond(one.base, eta)

    def needed() -> Tensor:
        return scale_to_pass(gaps, gaussian_noise(one.base.shape, source))

    return {
        "storage_density": lambda: smallest(needed(), one.changed),
        "storage_norm": lambda: needed() < one.scale,
    }[kind]


def null_stream(kind: str, one: Observed, seed: int) -> Callable[[], Tensor]:
    """As masks were drawn beside row and column ratios and beside agreement."""
    source = noise_generator(seed, kind, one.run, one.tensor)
    if one.eta is not None and kind in ("storage_density", "storage_norm"):
        return coarse_storage(kind, one, one.eta, source)
    return {
        "bernoulli": lambda: bernoulli_mask(one.base.shape, one.changed, source),
        "storage_density": lambda: storage_mask_at_density(one.base, one.changed, source),
        "storage_norm": lambda: storage_mask_at_norm(one.base, one.scale, source),
        "magnitude": lambda: next(stratified_permutations(one.mask, one.base, generator=source)),
    }[kind]


def overlap_masks(kind: str, one: Observed, source: torch.Generator) -> Iterator[Tensor]:
    """As masks were drawn beside overlaps."""
    if kind == "magnitude":
        return stratified_permutations(one.mask, one.base, generator=source)
    changed = int(one.mask.count_nonzero())
    draw = {
        "bernoulli": lambda: bernoulli_mask(one.base.shape, changed, source),
        "storage_density": lambda: storage_mask_at_density(one.base, changed, source),
        "storage_norm": lambda: storage_mask_at_norm(one.base, one.scale, source),
    }[kind]
    return iter(lambda: draw(), None)


def check_same(before: Iterator[Tensor], now: Iterator[Tensor]) -> None:
    for _ in range(4):
        a, b = next(before), next(now)
        assert a.dtype == b.dtype == torch.bool and torch.equal(a, b)


@CASES
@pytest.mark.parametrize("eta", [None, 5e-3, 1e-2])
@pytest.mark.parametrize("kind", FOUNDING)
def test_streams_beside_ratios_and_agreement_are_as_before(kind, eta, shape, density):
    (null,) = nulls_named([kind])
    for seed in range(3):
        observed = observed_of(shape, density, seed, eta)
        source = noise_generator(seed, kind, observed.run, observed.tensor)
        check_same(iter(null_stream(kind, observed, seed), None), null.sampler(observed, source))


@CASES
@pytest.mark.parametrize("kind", FOUNDING)
def test_streams_beside_overlaps_are_as_before(kind, shape, density):
    (null,) = nulls_named([kind])
    for seed in range(3):
        observed = observed_of(shape, density, seed, None)
        sources = [noise_generator(seed, "overlap", "bf16", kind, "run", "tensor") for _ in range(2)]
        check_same(overlap_masks(kind, observed, sources[0]), null.sampler(observed, sources[1]))


@CASES
@pytest.mark.parametrize("eta", [ETA, 5e-3, 1e-2])
def test_one_noise_of_a_sweep_gives_both_storage_nulls_as_before(eta, shape, density):
    density_null, norm_null = nulls_named(["storage_density", "storage_norm"])
    for seed in range(3):
        observed = observed_of(shape, density, seed, eta)
        sources = [noise_generator(seed, "sweep", "storage", "run", "tensor") for _ in range(3)]
        gaps = gaps_beyond(observed.base, eta)
        streams = density_null.sampler(observed, sources[1]), norm_null.sampler(observed, sources[2])
        for _ in range(4):
            needed = scale_to_pass(gaps, gaussian_noise(observed.base.shape, sources[0]))
            assert torch.equal(smallest(needed, observed.changed), next(streams[0]))
            assert torch.equal(needed < observed.scale, next(streams[1]))
