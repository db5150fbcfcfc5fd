"""Magnitude null: the mask permuted among weights of about the same size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.laws.masks import MAGNITUDE
from threegates.geometry.nulls.noise import as_generator
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.precision import magnitude_bits, require_finite_bf16


def stratified_permutations(
    mask: Bool[Tensor, "*shape"],
    base: Shaped[Tensor, "*shape"],
    bins: int = 64,
    *,
    generator: torch.Generator | int,
) -> Iterator[Bool[Tensor, "*shape"]]:
    """Masks of the magnitude null without end: each permutes the mask at random within quantile bins of |w|.

    Keeps how many entries of each magnitude changed, and forgets which. Equal |w| always share a bin. The
    strata are found once, before the first draw.

    Parameters
    ----------
    mask : bool; base : finite bfloat16 tensor of its shape; bins : ≥ 1, at most that many strata.

    Raises
    ------
    GeometryError : bins < 1, or base is not finite bfloat16.

    **Source** stratified permutation test, Good (2005), ch. 3; Fisher (1935).
    """
    labels = magnitude_bins(base, bins).reshape(-1)
    sizes = torch.bincount(labels, minlength=bins)
    changed_in_bin = torch.bincount(labels, mask.reshape(-1).to(torch.float64), minlength=bins)
    rank_in_bin = torch.arange(len(labels), device=base.device) - (sizes.cumsum(0) - sizes).repeat_interleave(
        sizes
    )
    chosen = rank_in_bin < changed_in_bin.repeat_interleave(sizes)
    source = as_generator(generator)
    while True:
        out = torch.zeros_like(chosen)
        out[_shuffled_within(labels, bins, source)[chosen]] = True
        yield out.reshape(mask.shape)


def _shuffled_within(labels: Tensor, bins: int, generator: torch.Generator) -> Tensor:
    """Indices in order of label, and at random within a label.

    One sort of integers that hold label, random bits and index from high to low: far cheaper than argsort.
    Some 40 random bits are left for a matrix of 10⁵ entries; where two agree, the lower index goes first.
    """
    index_bits, label_bits = len(labels).bit_length(), bins.bit_length()
    random_bits = 63 - index_bits - label_bits
    noise = torch.randint(1 << random_bits, labels.shape, generator=generator, device=generator.device)
    index = torch.arange(len(labels), device=labels.device)
    keys = (((labels << random_bits) | noise.to(labels.device)) << index_bits) | index
    return _sorted(keys) & ((1 << index_bits) - 1)


def _sorted(keys: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values


def magnitude_bins(base: Shaped[Tensor, "*shape"], bins: int) -> Shaped[Tensor, "*shape"]:
    """Quantile bin of |w| for each weight, an integer in [0, bins); equal |w| share a bin.

    The bin of a value is that of its lowest rank among all: ⌊rank · bins / size⌋.

    Raises
    ------
    GeometryError : bins < 1, or base is not finite bfloat16.

    **Source** empirical quantiles.
    """
    require_finite_bf16(base, "base")
    if bins < 1:
        raise GeometryError("strata are counted from one", found=bins)
    bits = magnitude_bits(base).to(torch.int64)
    if not base.numel():
        return bits
    first_of_bin = -(-torch.arange(1, bins, device=base.device) * base.numel() // bins)
    last_before = _sorted(bits.reshape(-1))[first_of_bin - 1]
    borders = torch.bincount(last_before + 1, minlength=0x8000)
    return borders.cumsum(0)[bits]


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """Permutations of the observed mask, at whatever tolerance it was taken.

    **Source** as `stratified_permutations`.
    """
    return stratified_permutations(observed.mask, observed.base, generator=generator)


NULL = Null(
    name="magnitude",
    title="permuted within |W₀| bins",
    colour="#A6A6A6",
    marker="D",
    source="stratified permutation test, Good (2005), ch. 3; Fisher (1935)",
    holds="how many entries of each of 64 bins of |W₀| changed",
    destroys="which entries of a bin they are",
    matched_to=("mask",),
    sampler=masks,
    law=MAGNITUDE,
)
