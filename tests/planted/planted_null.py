"""A fifth null, for tests that everything which lists nulls takes one more."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from threegates.geometry.nulls.null import Null, Observed


def masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    """The rows of the observed mask in any order."""
    while True:
        yield observed.mask[torch.randperm(len(observed.mask), generator=generator)]


FIFTH = Null(
    name="planted_rows",
    title="rows in any order",
    colour="#B0B0B0",
    marker="v",
    source="a test",
    holds="the entries of every row",
    destroys="which row they are in",
    matched_to=("mask",),
    sampler=masks,
)
