"""The paper's null: as many entries as were changed, anywhere in the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from threegates.geometry.laws.masks import BERNOULLI
from threegates.geometry.nulls.noise import as_generator, check_count
from threegates.geometry.nulls.null import Null, Observed


def bernoulli_mask(shape: Sequence[int], changed: int, generator: torch.Generator | int) -> Bool[Tensor, ...]:
    """The paper's baseline: `changed` entries chosen uniformly among all.

    Independent Bernoulli entries given their total.

    Raises
    ------
    GeometryError : changed lies outside [0, size].

    **Source** Zhu et al. (2025), Table 2, conditioned on the count.
    """
    source = as_generator(generator)
    size = math.prod(shape)
    check_count(changed, size)
    mask = torch.zeros(size, dtype=torch.bool, device=source.device)
    mask[torch.randperm(size, generator=source, device=source.device)[:changed]] = True
    return mask.reshape(tuple(shape))


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """Masks of the observed count.

    **Source** as `bernoulli_mask`.
    """
    while True:
        yield bernoulli_mask(observed.base.shape, observed.changed, generator).to(observed.base.device)


NULL = Null(
    name="bernoulli",
    title="Bernoulli (the paper's)",
    colour="#000000",
    marker="|",
    source="Zhu et al. (2025), Table 2, conditioned on the count",
    holds="the count of changed entries",
    destroys="where they lie: every entry is as likely as any other",
    matched_to=("changed",),
    sampler=masks,
    law=BERNOULLI,
    uniform=True,
)
