"""What a null is: how its masks are drawn, what they keep of the observed mask, and how pages show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from threegates.geometry.nulls.noise import Real


@dataclass(frozen=True)
class Observed:
    """A run's update mask of one tensor, with what its nulls are matched to.

    Parameters
    ----------
    run, tensor : their names, part of the names of streams of noise.
    base : finite bfloat16; mask : bool, of its shape; changed : the mask's count.
    scale : of the Gaussian noise whose rounded update has the stored norm; NaN where no null asks for it.
    eta : tolerance of Definition 2.1 by which a weight counts as changed. None is the paper's, at which every
        change of a stored value counts, so that noise is added and rounded.
    """

    run: str
    tensor: str
    base: Tensor
    mask: Tensor
    changed: int
    scale: Real
    eta: Real | None = None


Sampler = Callable[[Observed, torch.Generator], Iterator[Tensor]]
"""Gives masks without end: bool, of the base's shape and on its device, each drawn anew."""


@dataclass(frozen=True)
class Null:
    """A null of update masks.

    Numbers hang on `sampler`, and on `matched_to`, `of_storage` and `uniform`, which are facts of it.

    Parameters
    ----------
    name : of its module, of its columns and of its streams of noise.
    title : its name on a page; colour, marker : a grey, and a marker of matplotlib, in figures.
    source : where it is from.
    holds, destroys : what its masks keep of the observed one, and what they do not, in words.
    matched_to : fields of `Observed` that its masks depend on, beside the base and the tolerance.
    of_storage : whether it is noise that storage rounds. Such a null says nothing of masks that are taken
        from float32 weights.
    uniform : whether all entries are changed equally often. Its mean overlap with any target is then the
        target's density, which needs no draws.
    """

    name: str
    title: str
    colour: str
    marker: str
    source: str
    holds: str
    destroys: str
    matched_to: tuple[str, ...]
    sampler: Sampler
    of_storage: bool = False
    uniform: bool = False
