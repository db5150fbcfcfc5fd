"""What a null is: how its masks are drawn, what they keep of the observed mask, and how pages show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from threegates.geometry.laws.masks import MaskLaw
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


#: Gives masks without end: bool, of the base's shape and on its device, each drawn anew.
Sampler = Callable[[Observed, torch.Generator], Iterator[Tensor]]


@dataclass(frozen=True, kw_only=True)
class NullMasks:
    """How masks of a null are drawn: all that measuring knows of it, so that no record hangs on the rest.

    Parameters
    ----------
    name : of the null's module, of its columns and of its streams of noise.
    sampler : draws its masks. What follows are facts of it.
    matched_to : fields of `Observed` that its masks depend on, beside the base and the tolerance.
    of_storage : whether it is noise that storage rounds, of base and scale or count alone. Such a null says
        nothing of masks that are taken from float32 weights.
    uniform : whether all entries are changed equally often. Its mean overlap with any target is then the
        target's density, which needs no draws.
    """

    name: str
    sampler: Sampler
    matched_to: tuple[str, ...]
    of_storage: bool = False
    uniform: bool = False


@dataclass(frozen=True, kw_only=True)
class NullOfLaw(NullMasks):
    """Masks of a null and the laws of what is counted over them, for what sets an observation beside both.

    law : of its masks' statistics; without one, masks are drawn wherever a law would be computed.
    """

    law: MaskLaw | None = None


@dataclass(frozen=True, kw_only=True)
class Null(NullOfLaw):
    """A null of update masks, with what pages and figures say of it.

    Parameters
    ----------
    title : its name on a page; colour, marker : a grey, and a marker of matplotlib, in figures.
    source : where it is from.
    holds, destroys : what its masks keep of the observed one, and what they do not, in words.
    """

    title: str
    colour: str
    marker: str
    source: str
    holds: str
    destroys: str
