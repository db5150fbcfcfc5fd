"""Whether a pair's update lies on principal or on small weights, and along which directions it points.

Four tables. ``overlap``: one row a matrix, target and view, at the headline rank and share, beside the laws
of nulls. ``sweep``: the same over a grid of ranks, shares and tolerances, beside their means. ``direction``:
the update's energy in the block of the leading singular directions beside random frames, which are drawn, and
``direction_sweep`` over ranks beside the expectation of random frames.

Two views of an update: ``bf16`` is the update mask of the stored weights; ``fp32`` marks the share α of
largest |ΔW|, taken from the weights as stored. Storage decides nothing there, so the storage nulls, which
match a bf16 mask, stand beside ``bf16`` alone. For directions the views are ΔW between the weights rounded
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    expected_energy,
    principal_energy,
    rotation_draws,
    stable_rank,
)
from threegates.geometry.laws.law import of_draws
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.laws.sweeps import codes_in_targets
from threegates.geometry.masks import pack, unpack, update_mask
from threegates.geometry.norm_matching import match_norm
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullOfLaw, Observed
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
    overlap_sweep,
    overlaps,
    principal_targets,
    sweep_targets,
)
from threegates.geometry.thresholds import entry_count
from threegates.measures.bases import base_of
from threegates.measures.by_tensor import Rows, Shared, measure_all
from threegates.measures.changes import COARSE_ETAS, as_stored, difference
from threegates.measures.norms import squared_norm
from threegates.measures.null_laws import MaskBeside, beside, law_columns
from threegates.measures.partners import PairInNorm

RAW, MATCHED = "raw", "norm-matched"
#: Random frames that an update's energy is set beside: their spread has no formula here.
FRAMES = 49
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
# Tolerances of the sweep, the paper's first.
ETAS = (ETA, *COARSE_ETAS)
#: Masks of a null without a law in each cell of the sweep.
SWEEP_DRAWS = 9
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
    **law_columns("rotation"),
    "stable_rank": "float64",
    "norm_delta": "float64",
}


def overlap_columns(nulls: Sequence[NullOfLaw]) -> dict[str, str]:
    """Columns of the table ``overlap`` and their types, with those of the nulls that it is measured with."""
    laws = {name: kind for null in nulls for name, kind in law_columns(null.name).items()}
    return {**_KEYS, **_FOUND, **laws}


def sweep_columns(nulls: Sequence[NullOfLaw]) -> dict[str, str]:
    """Columns of the table ``sweep``; a uniform null's mean is the target's density and has none."""
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
    seed: int
    shared: Shared
    nulls: Sequence[NullOfLaw]
    frames: int = FRAMES

    @cached_property
    def delta(self) -> Tensor:
        """ΔW as stored, held from the first look at it on."""
        before, after = as_stored(self.pair)
        return after - before

    @cached_property
    def norm(self) -> float:
        """‖ΔW‖_F of the update in bf16, which storage null 1b has."""
        return math.sqrt(squared_norm(self.pair.tuned, self.pair.base))

    @property
    def matched(self) -> bool:
        """Whether ΔW was scaled to a partner's norm."""
        return self.facts["variant"] == MATCHED

    def generator(self, *names: str) -> torch.Generator:
        """Source of what is drawn for this matrix of this pair under a name."""
        return noise_generator(self.seed, *names, self.facts["pair"], self.pair.name)

    def nulls_of(self, view: str) -> list[NullOfLaw]:
        """Nulls of a view's masks: storage has no part in which float32 changes are the largest."""
        return [null for null in self.nulls if view == "bf16" or not null.of_storage]

    def beside(self, view: str, mask: Tensor, targets: Mapping[str, Packed]) -> MaskBeside:
        """A mask and targets, with what the laws of nulls hang on."""
        base = self.pair.base
        shapes = [unpack(one, tuple(base.shape)) for one in targets.values()]
        names = f"{self.facts['pair']}/{view}", self.pair.name
        return MaskBeside(*names, base, mask, shapes, self.norm, self.seed)

    def seen(self, mask: Tensor, eta: float) -> Seen:
        """A mask at a tolerance, as counts of codes."""
        at = None if math.isnan(eta) else eta
        return see(self.pair.base, mask, norm=self.norm, eta=at, seed=self.seed)


@dataclass(frozen=True)
class PairOverlap(PairInNorm):
    """A pair whose matrices in blocks are measured tensor by tensor; parameters are `measure_overlap`'s."""

    nulls: Sequence[NullOfLaw] = field(kw_only=True)

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
        own = matrix_of(pair, self.name, self.seed, rank, shared, self.nulls)
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
    nulls: Sequence[NullOfLaw],
    partner: Checkpoint | None = None,
    partner_name: str = "",
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """Measure every matrix in a block of a pair.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    nulls : those beside the pair's masks.
    partner : another run on the same base, whose update norms the norm-matched variant takes; without it, or
        where it lacks the matrix, there is none.
    seed : of what is drawn: random frames, and masks of nulls without a law or where too few weights change.

    Returns
    -------
    tables ``overlap``, ``sweep``, ``direction`` and ``direction_sweep``.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairOverlap(base, tuned, name, partner, partner_name, seed, nulls=nulls))


def _variants(own: _Subject, norm: float | None, partner: str) -> Iterator[_Subject]:
    """The update as it is, and scaled to a partner's norm; triplets and rank are the base's and stay."""
    yield own
    if norm is None or (norm and not own.delta.any()):
        return
    scaled = match_norm(own.pair.base_stored, own.pair.tuned_stored, norm)
    pair = replace(own.pair, tuned=scaled.rounded, tuned_stored=scaled.unrounded)
    facts = {**own.facts, "variant": MATCHED, "partner": partner}
    yield replace(own, facts=facts, pair=pair, nulls=(), frames=0)


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
    seed: int,
    rank: int,
    shared: Shared,
    nulls: Sequence[NullOfLaw],
) -> _Subject:
    """A matrix of the pair of that name, with `rank` triplets of its base, at least the headline rank."""
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
    return _Subject(facts, pair, triplets, k, seed, shared, nulls)


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
            rows.append(row | _numbers(found[target]) | nulls[target])
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
) -> dict[str, dict[str, float | str]]:
    """By target, where the overlap stands in the laws of the view's nulls; nothing for an empty mask."""
    columns: dict[str, dict[str, float | str]] = {target: {} for target in targets}
    nulls = subject.nulls_of(view) if mask.any() else []
    if not nulls:
        return columns
    placed = subject.beside(view, mask, targets)
    for null in nulls:
        for target, law in zip(targets, placed.overlaps(null), strict=True):
            columns[target] |= beside(null.name, found[target].overlap, law, "two-sided")
    return columns


@dataclass(frozen=True)
class _Swept:
    """A mask of the sweep, an update's own or a draw of a null; η is NaN where none plays a part."""

    view: str
    eta: float
    mask: Tensor
    null: str = ""


#: Means of nulls by view, η as text, name, rank, α and target.
_Means = dict[tuple[str, str, str, int, float, str], float]


def _sweep_rows(subject: _Subject, largest: Tensor) -> list[dict]:
    """Every view, target, rank, share and tolerance; `largest` marks the largest float32 changes."""
    base, tuned = subject.pair.base, subject.pair.tuned
    own = [_Swept("bf16", eta, update_mask(base, tuned, eta)) for eta in ETAS]
    own.append(_Swept("fp32", math.nan, largest))
    swept = own + [drawn for one in own for drawn in _drawn_beside(subject, one)]
    targets = subject.shared.of("sweep", base, lambda: _sweep_targets(subject))
    means = {place: mean for one in own for place, mean in _means(subject, one, targets).items()}
    found: dict[tuple, list[Overlap]] = defaultdict(list)
    for cell in overlap_sweep(targets, [pack(one.mask) for one in swept]):
        one = swept[cell.mask]
        for target, overlap in cell.overlaps.items():
            found[one.view, str(one.eta), one.null, cell.rank, cell.alpha, target].append(overlap)
    means |= {
        place: float(np.mean([one.overlap for one in draws])) for place, draws in found.items() if place[2]
    }
    return [_sweep_row(subject, place, found[place][0], means) for place in found if not place[2]]


def _sweep_row(subject: _Subject, place: tuple, found: Overlap, means: _Means) -> dict:
    view, eta, _, rank, alpha, target = place
    cell = {"view": view, "eta": float(eta), "k": rank, "alpha": alpha, "target": target}
    nulls = {
        f"{null.name}_mean": means[where]
        for null in subject.nulls
        if (where := (view, eta, null.name, rank, alpha, target)) in means
    }
    size = {"smaller_side": min(subject.pair.base.shape)}
    return {**subject.facts, **size, **cell, **_numbers(found), **nulls}


def _drawn_beside(subject: _Subject, one: _Swept) -> Iterator[_Swept]:
    """Masks of the view's nulls that have no law."""
    for null in subject.nulls_of(one.view):
        if null.law or not one.mask.any():
            continue
        seen = subject.seen(one.mask, one.eta)
        scale = seen.scale if "scale" in null.matched_to else math.nan
        eta = None if math.isnan(one.eta) else one.eta
        names = subject.facts["pair"], subject.pair.name
        observed = Observed(*names, subject.pair.base, one.mask, seen.changed, scale, eta)
        masks = null.sampler(observed, subject.generator("sweep", null.name, one.view))
        yield from (replace(one, mask=mask, null=null.name) for mask in islice(masks, SWEEP_DRAWS))


def _means(subject: _Subject, one: _Swept, targets: SweepTargets) -> _Means:
    """Means of the view's nulls with a law in every cell; none for an empty mask."""
    nulls = [null for null in subject.nulls_of(one.view) if null.law and not null.uniform]
    if not nulls or not one.mask.any():
        return {}
    base, seen = subject.pair.base, subject.seen(one.mask, one.eta)
    inside = subject.shared.of(
        "codes of the sweep", base, lambda: codes_in_targets(base, seen.codes, targets)
    )
    counts = np.stack(list(inside.values()), axis=1)
    found: _Means = {}
    for null in nulls:
        assert null.law is not None
        means = null.law.means(seen, counts)
        names = one.view, str(one.eta), null.name
        found |= {(*names, *place): float(mean) for place, mean in zip(inside, means, strict=True)}
    return found


def _sweep_targets(subject: _Subject) -> SweepTargets:
    ranks = sweep_ranks(tuple(subject.pair.base.shape))
    triplets = subject.triplets.leading(max(ranks))
    return sweep_targets(subject.pair.base, *triplets, ranks=ranks, alphas=ALPHAS)


def _direction_rows(subject: _Subject) -> list[dict]:
    """ρ² of the update in each view; random frames beside the one that storage has not touched."""
    rounded = difference(subject.pair.tuned, subject.pair.base)
    bare = replace(subject, frames=0)
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
    row = {
        **subject.facts,
        "view": view,
        "rho2": rho2,
        "expected": expected_energy(tuple(delta.shape), subject.k),
        "stable_rank": stable_rank(delta),
        "norm_delta": float(torch.linalg.vector_norm(delta)),
    }
    if not subject.frames or math.isnan(rho2):
        return row
    drawn = rotation_draws(delta, subject.k, subject.generator("rotation"), draws=subject.frames)
    return row | beside("rotation", rho2, of_draws(drawn), "two-sided")
