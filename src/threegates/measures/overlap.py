"""Whether a pair's update lies on principal or on small weights, and along which directions it points.

Three tables. ``overlap``: one row a matrix, target and view, at the headline rank and share, with nulls.
``sweep``: the same over a grid of ranks, shares and tolerances, beside fewer draws. ``direction``: the
update's energy in the block of the leading singular directions beside random frames, and
``direction_sweep`` over ranks beside the expectation of random frames.

Two views of an update: ``bf16`` is the update mask of the stored weights; ``fp32`` marks the share α of
largest |ΔW|, taken from the weights as stored. Storage decides nothing there, so the storage nulls, which
match a bf16 mask, are drawn for ``bf16`` alone. For directions the views are ΔW between the weights rounded
to bf16, and between the weights as stored; random frames are drawn for the latter.

Two variants: ``raw`` is the update as it is; ``norm-matched`` is ΔW scaled, matrix by matrix, to the norm of
a partner's, so that overlaps are compared at equal norm and equal rounding. It is a control itself and has
no nulls.

The tolerance η of Definition 2.1 decides what of a stored change counts. At the paper's own it is every
change; at larger ones the bf16 mask and the storage nulls leave out changes by one code or a few.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import TensorPair, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.directions import (
    FEWEST_DRAWS,
    expected_energy,
    principal_energy,
    rotation_draws,
    stable_rank,
)
from threegates.geometry.masks import pack, update_mask
from threegates.geometry.norm_matching import match_norm
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullMasks, Observed
from threegates.geometry.nulls.summaries import NullSummary, summarise
from threegates.geometry.precision import ETA
from threegates.geometry.principal import (
    HEADLINE_ALPHA,
    SMALLEST_FULL_SIDE,
    TARGETS,
    Overlap,
    Packed,
    SweepTargets,
    headline_rank,
    largest_updates,
    overlap_draws,
    overlap_sweep,
    overlaps,
    principal_targets,
    sweep_targets,
)
from threegates.geometry.thresholds import entry_count
from threegates.measures.bases import base_of
from threegates.measures.by_tensor import Rows, Shared, measure_all
from threegates.measures.changes import as_stored, difference
from threegates.measures.draws import COARSE_ETAS, noise_scale
from threegates.measures.partners import PairInNorm

RAW, MATCHED = "raw", "norm-matched"
SUMMARY = ("mean", "sd", "low", "high", "p", "z")
# Ranks of the sweep: shares of the smaller side where matrices are small, else 16 and the ranks LIFT tried.
RANK_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
RANKS = (16, 32, 64, 128)
ALPHAS = (0.05, 0.1, 0.3, 0.5, 0.7)

_KEYS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "variant": "str",
    "partner": "str",
    "stored_dtype_base": "str",
    "stored_dtype_tuned": "str",
    "k": "int64",
}
_FOUND = {
    "alpha": "float64",
    "target": "str",
    "view": "str",
    "changed": "int64",
    "size": "int64",
    "overlap": "float64",
    "density": "float64",
    "lift": "float64",
    "lift_low": "float64",
    "lift_high": "float64",
}
# Tolerances of the sweep, the paper's first. Draws of a null in each cell: one, for a cell is judged by means
# over many matrices and runs.
ETAS = (ETA, *COARSE_ETAS)
SWEEP_DRAWS = 1
_NARROW = ("view", "variant", "partner", "k", "pair", "tensor", "role", "layer")
DIRECTION_SWEEP_COLUMNS = {
    **{name: _KEYS.get(name, "str") for name in _NARROW},
    "smaller_side": "int64",
    "rho2": "float64",
    "rotation_mean": "float64",
}
DIRECTION_COLUMNS = {
    **_KEYS,
    "view": "str",
    "rho2": "float64",
    "expected": "float64",
    **{f"rotation_{name}": "float64" for name in SUMMARY},
    "draws": "int64",
    "stable_rank": "float64",
    "norm_delta": "float64",
}


def overlap_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the table ``overlap`` and their types, with those of the nulls that it is measured with."""
    drawn = {f"{null.name}_{name}": "float64" for null in nulls for name in SUMMARY}
    return {**_KEYS, **_FOUND, **drawn, "draws": "int64"}


def sweep_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the table ``sweep``; a uniform null's mean is the target's density and is not drawn."""
    means = {f"{null.name}_mean": "float64" for null in nulls if not null.uniform}
    return {**_KEYS, "smaller_side": "int64", "eta": "float64", **_FOUND, **means}


@dataclass(frozen=True)
class _Triplets:
    """Singular triplets of a base matrix, descending, in float64: u (m, r), s (r,), v (n, r)."""

    u: Tensor
    s: Tensor
    v: Tensor

    def leading(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.u[:, :k], self.s[:k], self.v[:, :k]


@dataclass(frozen=True)
class _Subject:
    """One matrix of a pair: its weights, its base's triplets, its headline rank, what its nulls hang on."""

    facts: dict[str, Any]
    pair: TensorPair
    triplets: _Triplets
    k: int
    draws: int
    seed: int
    shared: Shared
    nulls: Sequence[NullMasks]
    known_scale: float | None = None

    @cached_property
    def delta(self) -> Tensor:
        """ΔW as stored, held from the first look at it on."""
        before, after = as_stored(self.pair)
        return after - before

    @cached_property
    def scale(self) -> float:
        """Scale of the noise of the stored update's norm, for storage null 1b."""
        if self.known_scale is not None:
            return self.known_scale
        return noise_scale(self.pair, self.generator("scale"))

    @property
    def matched(self) -> bool:
        """Whether ΔW was scaled to a partner's norm."""
        return self.facts["variant"] == MATCHED

    def generator(self, *names: str) -> torch.Generator:
        """Source of what is drawn for this matrix of this pair under a name."""
        return noise_generator(self.seed, *names, self.facts["pair"], self.pair.name)

    def nulls_of(self, view: str) -> list[NullMasks]:
        """Nulls of a view's masks: storage has no part in which float32 changes are the largest."""
        return [null for null in self.nulls if view == "bf16" or not null.of_storage]

    def observed(self, mask: Tensor, nulls: Sequence[NullMasks], eta: float | None = None) -> Observed:
        """A mask with what these nulls are matched to; a scale of noise is found if one asks for it."""
        scale = self.scale if any("scale" in null.matched_to for null in nulls) else math.nan
        changed = int(mask.count_nonzero())
        return Observed(self.facts["pair"], self.pair.name, self.pair.base, mask, changed, scale, eta)


@dataclass(frozen=True)
class PairOverlap(PairInNorm):
    """A pair whose matrices in blocks are measured tensor by tensor; parameters are `measure_overlap`'s."""

    draws: int = field(kw_only=True)
    nulls: Sequence[NullMasks] = field(kw_only=True)

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        """Tables and their columns."""
        return {
            "overlap": overlap_columns(self.nulls),
            "sweep": sweep_columns(self.nulls),
            "direction": DIRECTION_COLUMNS,
            "direction_sweep": DIRECTION_SWEEP_COLUMNS,
        }

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """Rows of one matrix in each table and variant; none for one without entries."""
        found: Rows = {name: [] for name in self.tables}
        pair = load_pair(self.base, self.tuned, tensor)
        if not pair.base.numel():
            return found
        rank = max(sweep_ranks(tuple(pair.base.shape)))
        own = matrix_of(pair, self.name, self.draws, self.seed, rank, shared, self.nulls)
        for subject in _variants(own, self.in_norm.norm(tensor), self.partner_name):
            masks = _views(subject)
            found["overlap"] += overlap_rows(subject, masks)
            found["sweep"] += _sweep_rows(subject, masks["fp32"])
            found["direction"] += _direction_rows(subject)
            found["direction_sweep"] += _direction_sweep_rows(subject)
        return found


def measure_overlap(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    name: str,
    draws: int,
    nulls: Sequence[NullMasks],
    partner: Checkpoint | None = None,
    partner_name: str = "",
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Measure every matrix in a block of a pair.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    draws : masks per null and matrix; random frames are at least 20. With 0 the nulls' columns stay empty.
    nulls : those beside the pair's masks.
    partner : another run on the same base, whose update norms the norm-matched variant takes; without it, or
        where it lacks the matrix, there is none.
    seed : of the nulls.

    Returns
    -------
    tables ``overlap``, ``sweep``, ``direction`` and ``direction_sweep``.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairOverlap(base, tuned, name, partner, partner_name, seed, draws=draws, nulls=nulls))


def _variants(own: _Subject, norm: float | None, partner: str) -> Iterator[_Subject]:
    """The update as it is, and scaled to a partner's norm; triplets and rank are the base's and stay."""
    yield own
    if norm is None or (norm and not own.delta.any()):
        return
    scaled = match_norm(own.pair.base_stored, own.pair.tuned_stored, norm)
    pair = replace(own.pair, tuned=scaled.rounded, tuned_stored=scaled.unrounded)
    facts = {**own.facts, "variant": MATCHED, "partner": partner}
    yield replace(own, facts=facts, pair=pair, draws=0, known_scale=None)


def sweep_ranks(shape: tuple[int, ...]) -> list[int]:
    """Ranks of the sweep, ascending, the headline rank among them."""
    n = min(shape)
    ranks = RANKS if n >= SMALLEST_FULL_SIDE else [max(1, round(share * n)) for share in RANK_SHARES]
    return sorted({headline_rank(shape), *ranks})


def _leading_triplets(weight: Tensor, rank: int, shared: Shared) -> _Triplets:
    found = base_of(weight, rank, shared).leading.leading
    return _Triplets(found.left, found.values, found.right)


def matrix_of(
    pair: TensorPair,
    name: str,
    draws: int,
    seed: int,
    rank: int,
    shared: Shared,
    nulls: Sequence[NullMasks],
    known_scale: float | None = None,
) -> _Subject:
    """A matrix of the pair of that name, with `rank` triplets of its base, at least the headline rank.

    known_scale : scale of the noise of the stored update's norm, where it was found before.
    """
    k = headline_rank(pair.base.shape)
    facts = {
        "pair": name,
        "tensor": pair.name,
        "role": role(pair.name, pair.base.shape),
        "layer": layer(pair.name),
        "variant": RAW,
        "partner": "",
        "stored_dtype_base": dtype_name(pair.base_stored),
        "stored_dtype_tuned": dtype_name(pair.tuned_stored),
        "k": k,
    }
    triplets = _leading_triplets(pair.base, rank, shared)
    return _Subject(facts, pair, triplets, k, draws, seed, shared, nulls, known_scale)


def dtype_name(x: Tensor) -> str:
    """Type of a tensor as a safetensors header names it."""
    return {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}.get(
        x.dtype, str(x.dtype)
    )


def _views(subject: _Subject) -> dict[str, Tensor]:
    """The update's mask in each view; entries that did not move at all are in none."""
    moved = int(subject.delta.count_nonzero())
    count = min(moved, entry_count(HEADLINE_ALPHA, subject.delta.numel()))
    return {
        "bf16": update_mask(subject.pair.base, subject.pair.tuned),
        "fp32": largest_updates(subject.delta, count),
    }


def overlap_rows(subject: _Subject, masks: dict[str, Tensor]) -> list[dict]:
    """Every view and target at the headline rank and share, beside the view's nulls."""
    base = subject.pair.base
    targets = subject.shared.of(
        ("targets", subject.k), base, lambda: principal_targets(base, *subject.triplets.leading(subject.k))
    )
    rows = []
    for view, mask in masks.items():
        found = overlaps(pack(mask), targets, base.numel())
        nulls = _null_columns(subject, view, mask, targets, found)
        for target in TARGETS:
            row = {**subject.facts, "alpha": HEADLINE_ALPHA, "target": target, "view": view}
            rows.append(row | _numbers(found[target]) | nulls[target] | {"draws": subject.draws})
    return rows


def _numbers(found: Overlap) -> dict[str, float]:
    low, high = found.interval
    numbers = {"changed": found.changed, "size": found.size, "overlap": found.overlap}
    return numbers | {"density": found.density, "lift": found.lift, "lift_low": low, "lift_high": high}


def _null_columns(
    subject: _Subject,
    view: str,
    mask: Tensor,
    targets: dict[str, Packed],
    found: dict[str, Overlap],
) -> dict[str, dict[str, float]]:
    """By target, the summary of the view's nulls; none for a mask without entries."""
    columns: dict[str, dict[str, float]] = {target: {} for target in targets}
    if not subject.draws or not mask.any():
        return columns
    nulls = subject.nulls_of(view)
    observed = subject.observed(mask, nulls)
    for null in nulls:
        masks = null.sampler(observed, subject.generator("overlap", view, null.name))
        for target, values in overlap_draws(masks, targets, subject.draws).items():
            columns[target] |= _summary(null.name, found[target].overlap, values)
    return columns


def _summary(null: str, observed: float, draws: np.ndarray) -> dict[str, float]:
    """Columns of one null, two-sided; NaN without a finite draw or an observed value."""
    values = draws[np.isfinite(draws)]
    if not len(values) or math.isnan(observed):
        return {}
    return _named(null, summarise(observed, values, "two-sided"))


def _named(null: str, summary: NullSummary) -> dict[str, float]:
    return {f"{null}_{f.name}": getattr(summary, f.name) for f in fields(summary) if f.name in SUMMARY}


@dataclass(frozen=True)
class _Swept:
    """A mask of the sweep: an update's own, or a null's draw beside it. η is NaN where none plays a part."""

    view: str
    eta: float
    null: str
    mask: Tensor


def _sweep_rows(subject: _Subject, largest: Tensor) -> list[dict]:
    """Every view, target, rank, share and tolerance; `largest` marks the largest float32 changes."""
    swept = [*_stored_masks(subject), *_beside_nulls(subject, "fp32", math.nan, largest)]
    targets = subject.shared.of("sweep", subject.pair.base, lambda: _sweep_targets(subject))
    cells = overlap_sweep(targets, [pack(one.mask) for one in swept])
    drawn: dict[tuple, list[float]] = defaultdict(list)
    own = []
    for cell in cells:
        one = swept[cell.mask]
        place = (one.view, one.eta, cell.rank, cell.alpha)
        for target, found in cell.overlaps.items():
            if one.null:
                drawn[*map(str, place), target, one.null].append(found.overlap)
            else:
                own.append((place, target, found))
    return [_sweep_row(subject, place, target, found, drawn) for place, target, found in own]


def _sweep_row(subject: _Subject, place: tuple, target: str, found: Overlap, drawn: dict) -> dict:
    view, eta, rank, alpha = place
    cell = {"view": view, "eta": eta, "k": rank, "alpha": alpha, "target": target}
    nulls = {
        f"{null.name}_mean": float(np.mean(drawn[*map(str, place), target, null.name]))
        for null in subject.nulls
        if (*map(str, place), target, null.name) in drawn
    }
    size = {"smaller_side": min(subject.pair.base.shape)}
    return {**subject.facts, **size, **cell, **_numbers(found), **nulls}


def _stored_masks(subject: _Subject) -> Iterator[_Swept]:
    """The bf16 mask at every tolerance, and its nulls."""
    base = subject.pair.base
    for eta in ETAS:
        yield from _beside_nulls(subject, "bf16", eta, update_mask(base, subject.pair.tuned, eta))


def _beside_nulls(subject: _Subject, view: str, eta: float, mask: Tensor) -> Iterator[_Swept]:
    """A mask, and draws of those nulls whose mean has to be drawn."""
    yield _Swept(view, eta, "", mask)
    nulls = [null for null in subject.nulls_of(view) if not null.uniform]
    if not subject.draws or not mask.any():
        return
    observed = subject.observed(mask, nulls, None if math.isnan(eta) else eta)
    for null in nulls:
        # One noise serves all storage nulls; each stream begins anew, so it serves all tolerances too.
        names = ("storage",) if null.of_storage else (null.name, view)
        masks = null.sampler(observed, subject.generator("sweep", *names))
        yield from (_Swept(view, eta, null.name, one) for one in islice(masks, SWEEP_DRAWS))


def _sweep_targets(subject: _Subject) -> SweepTargets:
    ranks = sweep_ranks(tuple(subject.pair.base.shape))
    triplets = subject.triplets.leading(max(ranks))
    return sweep_targets(subject.pair.base, *triplets, ranks=ranks, alphas=ALPHAS)


def _direction_rows(subject: _Subject) -> list[dict]:
    """ρ² of the update in each view; random frames beside the one that storage has not touched."""
    rounded = difference(subject.pair.tuned, subject.pair.base)
    bare = replace(subject, draws=0)
    return [_direction_row(subject, "fp32", subject.delta.double()), _direction_row(bare, "bf16", rounded)]


def _direction_sweep_rows(subject: _Subject) -> list[dict]:
    """ρ² at every rank of the sweep; random frames by their expectation k²/(mn)."""
    shape = tuple(subject.pair.base.shape)
    ranks = [rank for rank in sweep_ranks(shape) if rank <= len(subject.triplets.s)]
    rounded = difference(subject.pair.tuned, subject.pair.base)
    u, _, v = subject.triplets.leading(max(ranks))
    rows = []
    for view, delta in (("fp32", subject.delta.double()), ("bf16", rounded)):
        whole, block = float(delta.square().sum()), (u.T @ delta @ v).square()
        for k in ranks:
            row = {name: subject.facts[name] for name in _NARROW if name in subject.facts}
            row |= {"view": view, "k": k, "smaller_side": min(shape)}
            row["rho2"] = float(block[:k, :k].sum()) / whole if whole else math.nan
            rows.append(row | {"rotation_mean": expected_energy(shape, k)})
    return rows


def _direction_row(subject: _Subject, view: str, delta: Tensor) -> dict:
    """ρ² of an update at the headline rank beside random frames."""
    u, _, v = subject.triplets.leading(subject.k)
    rho2 = principal_energy(delta, u, v)
    frames = max(FEWEST_DRAWS, subject.draws) if subject.draws else 0
    row = {
        **subject.facts,
        "view": view,
        "rho2": rho2,
        "expected": expected_energy(tuple(delta.shape), subject.k),
        "stable_rank": stable_rank(delta),
        "norm_delta": float(torch.linalg.vector_norm(delta)),
        "draws": frames,
    }
    if not frames:
        return row
    drawn = rotation_draws(delta, subject.k, subject.generator("rotation"), draws=frames)
    return row | _summary("rotation", rho2, drawn)
