"""Magnitude null: the mask permuted among weights of about the same size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from threegates.geometry.laws.codes import CodeCounts, count_codes
from threegates.geometry.laws.masks import MAGNITUDE
from threegates.geometry.laws.strata import Strata, value_strata
from threegates.geometry.nulls.noise import as_generator
from threegates.geometry.nulls.null import Null, Observed


def stratified_permutations(
    mask: Bool[Tensor, "*shape"],
    base: Shaped[Tensor, "*shape"],
    strata_of: Callable[[CodeCounts], Strata] = value_strata,
    *,
    generator: torch.Generator | int,
) -> Iterator[Bool[Tensor, "*shape"]]:
    """Masks of the magnitude null without end: each permutes the mask at random within strata of |w|.

    Keeps how many entries of each magnitude changed, and forgets which. Equal |w| always share a stratum. The
    strata are found once, before the first draw.

    Parameters
    ----------
    mask : bool; base : finite bfloat16 tensor of its shape; strata_of : the strata, from the base's codes.

    Raises
    ------
    GeometryError : base is not finite bfloat16.

    **Source** stratified permutation test, Good (2005), ch. 3; Fisher (1935).
    """
    labels, number = _labels(base, strata_of)
    sizes = torch.bincount(labels, minlength=number)
    changed = torch.bincount(labels, mask.reshape(-1).to(torch.float64), minlength=number)
    rank = torch.arange(len(labels), device=base.device) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    chosen = rank < changed.repeat_interleave(sizes)
    source = as_generator(generator)
    while True:
        out = torch.zeros_like(chosen)
        out[_shuffled_within(labels, number, source)[chosen]] = True
        yield out.reshape(mask.shape)


def _labels(base: Tensor, strata_of: Callable[[CodeCounts], Strata]) -> tuple[Tensor, int]:
    """Stratum of every weight, flat, and how many there are."""
    codes = count_codes(base)
    strata = strata_of(codes)
    table = torch.from_numpy(codes.by_pattern(strata.of_code))
    bits = base.contiguous().view(torch.int16).reshape(-1).to(torch.int64) & 0xFFFF
    return table.to(base.device)[bits], strata.number


def _shuffled_within(labels: Tensor, strata: int, generator: torch.Generator) -> Tensor:
    """Indices in order of label, and at random within a label.

    One sort of integers that hold label, random bits and index from high to low: far cheaper than argsort.
    Some 40 random bits are left for a matrix of 10⁵ entries; where two agree, the lower index goes first.
    """
    index_bits, label_bits = len(labels).bit_length(), strata.bit_length()
    random_bits = min(62, 63 - index_bits - label_bits)
    noise = torch.randint(1 << random_bits, labels.shape, generator=generator, device=generator.device)
    index = torch.arange(len(labels), device=labels.device)
    keys = (((labels << random_bits) | noise.to(labels.device)) << index_bits) | index
    return _sorted(keys) & ((1 << index_bits) - 1)


def _sorted(keys: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """Permutations of the observed mask, at whatever tolerance it was taken.

    **Source** as `stratified_permutations`.
    """
    return stratified_permutations(observed.mask, observed.base, generator=generator)


NULL = Null(
    name="magnitude",
    title="permuted at equal |W₀|",
    colour="#A6A6A6",
    marker="D",
    source="stratified permutation test, Good (2005), ch. 3; Fisher (1935)",
    holds="how many entries of each |W₀| changed (rare values joined to 64 weights, within a power of two)",
    destroys="which entries of that size they are",
    matched_to=("mask",),
    sampler=masks,
    law=MAGNITUDE,
)
