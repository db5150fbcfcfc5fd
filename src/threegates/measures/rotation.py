"""Whether masks agree between runs from a base and from the same base in other coordinates.

Two tables. ``rotation``: one row a matrix, comparison and untouched run that it is made with, beside means of
storage null 1a, by its law. ``frame``: what a rotated base keeps of the untouched one's spectrum, before and
after rounding.

Comparisons set an untouched run A′ beside

- ``untouched``: an untouched run A with the seed of B;
- ``rotated``: a run B from the rotated base, its heads put back in their order, entries of heads as they are;
- ``raw``: B with the heads in the order that they have in its own base;
- ``rotated back``: B's ΔW taken to the original frame, added to the untouched base and rounded there.

A and B have one seed, A′ another, so that untouched and rotated runs are held against A′ alike. Runs of one
seed see the same prompts and draw nearly the same samples as long as their policies agree; what A itself
shares with B (``same_seed``) says how far the path is the same when the data are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.frame import Frame
from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.laws.law import DRAWN, FIRST_ORDER, LAW
from threegates.geometry.laws.masks import AT_COUNT
from threegates.geometry.laws.rank_correlation import mean_ranks
from threegates.geometry.laws.two_bases import Chances, chances_at_count, intersection_moments
from threegates.geometry.laws.two_masks import mean_jaccard
from threegates.geometry.masks import column_ratio, jaccard, pack, popcount, row_ratio, update_mask
from threegates.geometry.nulls.null import NullOfLaw, Observed
from threegates.geometry.nulls.storage_density import storage_mask_at_density
from threegates.geometry.precision import to_bf16
from threegates.geometry.rotation import (
    AXIS_OF_HEADS,
    Heads,
    permute_heads_back,
    reframed,
    rotate_values_back,
)
from threegates.geometry.spectra import normalised_spectral_shift, singular_values
from threegates.measures.agreement import AXES, rank_correlations
from threegates.measures.by_tensor import typed
from threegates.measures.changes import matrices
from threegates.measures.null_laws import MaskBeside

UNTOUCHED, ROTATED, RAW, BACK = "untouched", "rotated", "raw", "rotated back"
#: Roles that a rotation of values touches; their heads lie along rows of V and columns of O.
VALUES = ("v", "o")
_ATTENTION = ("q", "k", *VALUES)
_MEASURES = ("jaccard", "overlap", "spearman_row", "spearman_column")
ROTATION_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "side": "str",
    "touched": "bool",
    "permuted": "bool",
    "comparison": "str",
    "against": "str",
    "same_seed": "bool",
    "density_a": "float64",
    "density_b": "float64",
    "excess": "float64",
    **{name: "float64" for measure in _MEASURES for name in (measure, f"{measure}_null")},
    "null_how": "str",
}
FRAME_COLUMNS = {
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "rotated": "bool",
    "permuted": "bool",
    "nss_exact": "float64",
    "nss_stored": "float64",
    "as_stored": "float64",
}


def _masks(observed: Observed, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        yield storage_mask_at_density(observed.base, observed.changed, generator)


#: Storage null 1a: what decides its numbers, and nothing of its looks.
_NULL = NullOfLaw(name="storage_density", sampler=_masks, matched_to=("changed",), law=AT_COUNT)


@dataclass(frozen=True)
class Run:
    """A checkpoint that was tuned from a base, under its pair's name."""

    name: str
    base: Checkpoint
    tuned: Checkpoint


@dataclass(frozen=True)
class Coordinates:
    """The frame that a base's heads stand in, and the way back, tensor by tensor."""

    frame: Frame
    heads: Heads

    @classmethod
    def of(cls, base: Checkpoint, frame: Frame) -> Coordinates:
        """Of a rotated base; sizes of its attention come from its config."""
        return cls(frame, Heads.of(base.config))

    def is_rotated(self, tensor: str) -> bool:
        """Whether a rotation touched the tensor."""
        return _module(tensor) in VALUES and layer(tensor) in self.frame.rotations

    def is_permuted(self, tensor: str) -> bool:
        """Whether its heads were put in another order."""
        return _module(tensor) in _ATTENTION and layer(tensor) in self.frame.orders

    def in_order(self, tensor: str, x: Tensor) -> Tensor:
        """The tensor, or a mask of it, with its heads in their original order."""
        if not self.is_permuted(tensor):
            return x
        order = self.frame.orders[_number(tensor)]
        return permute_heads_back({tensor: x}, prefix_of(tensor), order, self.heads)[tensor]

    def back(self, tensor: str, update: Tensor) -> Tensor:
        """An update in the original frame: orders undone first, for rotations were applied before them."""
        ordered = self.in_order(tensor, update)
        if not self.is_rotated(tensor):
            return ordered
        rotation = self.frame.rotations[_number(tensor)]
        return rotate_values_back({tensor: ordered}, prefix_of(tensor), rotation, self.heads)[tensor]


def prefix_of(tensor: str) -> str:
    """What the names of an attention's tensors begin with, as "model.layers.1.self_attn."; "" elsewhere."""
    return next((tensor.removesuffix(part) for part in AXIS_OF_HEADS if tensor.endswith(f".{part}")), "")


def _module(tensor: str) -> str:
    """q, k, v or o of an attention's tensor, the biases of q, k and v included; "" of any other."""
    prefix = prefix_of(tensor)
    return tensor.removeprefix(prefix)[0] if prefix else ""


def _number(tensor: str) -> int:
    number = layer(tensor)
    assert number is not None
    return number


def measure_rotation(
    run: Run,
    coordinates: Coordinates,
    *,
    same: Run | None,
    other: Run | None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a run from a rotated base with untouched runs, in every matrix of the blocks.

    Parameters
    ----------
    run : B, from the rotated base; coordinates : of that base.
    same, other : untouched runs A of B's seed and A′ of another; None where there is none. Without A′ no two
        untouched runs can be compared.
    seed : of what is drawn under the null: counts of rows and columns, and masks where too few weights
        change.

    Returns
    -------
    the table ``rotation``. `excess` is (J − null)/(1 − null): 0 where the masks agree as storage makes them,
    1 where they are equal. `overlap` is the paper's |M_A ∩ M_B|/|M_B|. A null is the mean over independent
    masks for both sides, each of Gaussian noise of that mask's density on its own base. `null_how` says how
    that of Jaccard index and overlap was found (see `threegates.geometry.laws.law.Law`); rank correlations
    are means over drawn counts of rows and columns.

    Raises
    ------
    PairError : there is no untouched run, or checkpoints cannot be compared.
    """
    untouched = [one for one in (other, same) if one is not None]
    if not untouched:
        raise PairError("a rotated run needs an untouched one beside it", where=run.name)
    own = _Sides(run, coordinates, untouched[0].base, seed)
    rows: list[dict] = []
    for name in matrices(align(untouched[0].base, run.tuned)):
        facts = {"pair": run.name, **_facts(name, run, coordinates)}
        rows += [facts | row for row in _rows(name, own, same, other)]
    return typed(rows, ROTATION_COLUMNS)


def _facts(name: str, run: Run, coordinates: Coordinates) -> dict:
    found = role(name, run.tuned.infos[name].shape)
    return {
        "tensor": name,
        "role": found,
        "layer": layer(name),
        "side": "head" if found in VALUES else "residual",
        "touched": coordinates.is_rotated(name),
        "permuted": coordinates.is_permuted(name),
    }


@dataclass(frozen=True)
class _Side:
    """A mask of one matrix, and its storage null on the base that it was trained from."""

    own: MaskBeside

    @property
    def mask(self) -> Tensor:
        """The mask."""
        return self.own.mask

    @property
    def how(self) -> str:
        """How the null's overlap with another mask is found."""
        if self.own.drawn(_NULL):
            return DRAWN
        return FIRST_ORDER if AT_COUNT.is_rough(self.own.seen) else LAW

    @cached_property
    def chances(self) -> Chances:
        """The null's law at every weight."""
        return chances_at_count(self.own.seen, self.own.base)

    @cached_property
    def mean_ranks(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean ranks of rows and of columns under the null."""
        rows, columns = map(mean_ranks, self.own.line_ranks(_NULL))
        return rows, columns


@dataclass(frozen=True)
class _Sides:
    """What a rotated run shows in each comparison."""

    run: Run
    coordinates: Coordinates
    untouched: Checkpoint
    seed: int

    def of(self, run: Run, name: str) -> _Side:
        """A run's mask as it was stored."""
        pair = load_pair(run.base, run.tuned, name)
        return self._side(pair.base, pair.tuned, run.name, name)

    def views(self, name: str) -> Iterator[tuple[str, _Side]]:
        """The rotated run's masks by comparison."""
        raw = self.of(self.run, name)
        yield RAW, raw
        yield ROTATED, self._in_order(raw, name)
        yield BACK, self._back(name)

    def _in_order(self, raw: _Side, name: str) -> _Side:
        """The same mask with its heads in their original order, and the base that its null is of."""
        if not self.coordinates.is_permuted(name):
            return raw
        base, mask = (self.coordinates.in_order(name, x) for x in (raw.own.base, raw.mask))
        return _Side(replace(raw.own, base=base, mask=mask))

    def _back(self, name: str) -> _Side:
        """The mask of ΔW in the original frame, in float64 from the weights as stored, rounded once."""
        pair = load_pair(self.run.base, self.run.tuned, name)
        update = pair.tuned_stored.double() - pair.base_stored.double()
        base = self.untouched.bf16(name)
        tuned = to_bf16(base.double() + self.coordinates.back(name, update))
        return self._side(base, tuned, f"{self.run.name} {BACK}", name)

    def _side(self, base: Tensor, tuned: Tensor, told: str, name: str) -> _Side:
        # No null of this table is matched to a norm.
        return _Side(MaskBeside(told, name, base, update_mask(base, tuned), (), math.nan, self.seed))


def _rows(name: str, own: _Sides, same: Run | None, other: Run | None) -> Iterator[dict]:
    """One row for each comparison that the untouched runs allow."""
    sides = {run.name: own.of(run, name) for run in (same, other) if run is not None}
    if same is not None and other is not None:
        told = {"comparison": UNTOUCHED, "against": other.name, "same_seed": False}
        yield told | _agreement(sides[other.name], sides[same.name])
    views = dict(own.views(name))
    for run in (other, same):
        if run is not None:
            for comparison, side in views.items():
                told = {"comparison": comparison, "against": run.name, "same_seed": run is same}
                yield told | _agreement(sides[run.name], side)


def _agreement(a: _Side, b: _Side) -> dict[str, float | str]:
    """How two masks agree, beside the means under their nulls."""
    found = _statistics(a.mask, b.mask)
    null, how = _null_means(a, b)
    densities = {
        f"density_{of}": side.own.seen.changed / max(side.mask.numel(), 1)
        for of, side in (("a", a), ("b", b))
    }
    return {
        **found,
        **null,
        "excess": excess(found["jaccard"], null["jaccard_null"]),
        "null_how": how,
        **densities,
    }


def _null_means(a: _Side, b: _Side) -> tuple[dict[str, float], str]:
    """Mean of each measure over masks of the nulls of both sides, and how those of masks were found."""
    changed = a.own.seen.changed, b.own.seen.changed
    how = next((one for one in (DRAWN, FIRST_ORDER) if one in (a.how, b.how)), LAW)
    if how == DRAWN:
        pairs = list(zip(a.own.kept(_NULL), b.own.kept(_NULL), strict=True))
        index = float(np.mean([jaccard(*pair) for pair in pairs]))
        both = float(np.mean([popcount(x & y) for x, y in pairs]))
    else:
        both, variance = intersection_moments(a.chances, b.chances)
        index = mean_jaccard(both, variance, sum(changed))
    means = {"jaccard_null": index, "overlap_null": both / changed[1] if changed[1] else math.nan}
    for axis, one, other in zip(AXES, a.mean_ranks, b.mean_ranks, strict=True):
        means[f"spearman_{axis}_null"] = float(np.clip(one @ other, -1.0, 1.0))
    return means, how


def excess(found: float, null: float) -> float:
    """Agreement beyond a null's as a share of what is left to full agreement, (J − null)/(1 − null).

    At most 1; NaN where the null leaves nothing.

    **Source** chance-corrected agreement, Cohen (1960), with storage in the place of chance.
    """
    return (found - null) / (1 - null) if null < 1 else float("nan")


def _statistics(a: Tensor, b: Tensor) -> dict[str, float]:
    """Each measure of two masks."""
    one, other = pack(a), pack(b)
    found = {"jaccard": jaccard(one, other), "overlap": popcount(one & other) / (popcount(other) or math.nan)}
    for axis, ratio in zip(AXES, (row_ratio, column_ratio), strict=True):
        lines = torch.stack([ratio(a), ratio(b)]).cpu().numpy()
        found[f"spearman_{axis}"] = float(rank_correlations(lines)[0, 1])
    return found


def measure_frame(base: Checkpoint, rotated: Checkpoint, frame: Frame) -> pd.DataFrame:
    """What a rotated base keeps of the untouched one, for every matrix that its frame changes.

    Returns
    -------
    the table ``frame``: `nss_exact`, the NSS of the transformed matrix against the untouched one in float64,
    transformed here anew from the untouched base; `nss_stored`, the NSS of the stored matrix;
    `as_stored`, the share of its entries that are the transformed ones rounded to bf16.

    Raises
    ------
    PairError : the base lacks a layer of the frame.
    """
    coordinates = Coordinates.of(base, frame)
    rows = []
    for number in sorted({*frame.rotations, *frame.orders}):
        for name, exact in _transformed(base, coordinates, number).items():
            if exact.dim() == 2:
                rows.append(_frame_row(name, exact, base, rotated, coordinates))
    return typed(rows, FRAME_COLUMNS)


def _transformed(base: Checkpoint, coordinates: Coordinates, number: int) -> dict[str, Tensor]:
    """The attention tensors of a layer that its frame changes, in float64: rotated first, then permuted."""
    frame, heads = coordinates.frame, coordinates.heads
    own = {name: base.bf16(name) for name in base.infos if layer(name) == number and prefix_of(name)}
    if not own:
        raise PairError("the base lacks a layer of the frame", where=base.folder, found=number)
    prefix = prefix_of(next(iter(own)))
    return reframed(own, prefix, frame.rotations.get(number), frame.orders.get(number), heads)


def _frame_row(
    name: str, exact: Tensor, base: Checkpoint, rotated: Checkpoint, coordinates: Coordinates
) -> dict:
    stored = rotated.bf16(name)
    spectra = [singular_values(one.double(), "reference") for one in (base.bf16(name), exact, stored)]
    before, transformed, kept = (spectrum.values for spectrum in spectra)
    return {
        "tensor": name,
        "role": role(name, exact.shape),
        "layer": layer(name),
        "rotated": coordinates.is_rotated(name),
        "permuted": coordinates.is_permuted(name),
        "nss_exact": normalised_spectral_shift(before, transformed),
        "nss_stored": normalised_spectral_shift(before, kept),
        "as_stored": float((to_bf16(exact.double()) == stored).double().mean()),
    }
