"""What storage shows and hides of a run's displacement, checkpoint by checkpoint.

Two tables. ``lens`` has a row for each checkpoint and tensor: how many weights moved, how many of them
storage shows, whether the half gap predicts which, what single steps would have reached, how much of the
update lies where it is hidden, and the same of Gaussian noise of the update's norm. ``lens_bins`` has the
same weights by their size and by how far they moved.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import Status, TensorPair, align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.accumulation import crosses, displacement_ratio, reaches_half_ulp
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.precision import half_gap_towards, magnitude_bits, sign_word
from threegates.measures.by_tensor import typed
from threegates.measures.norms import frobenius

#: Counts and sums of the table ``lens``; all but the energies are numbers of weights.
COUNTS = (
    "size",
    "moved",
    "changed",
    "hidden",
    "hidden_later",
    "reverted_later",
    "ties",
    "gap_exceptions",
    "half_ulp_exceptions",
    "half_ulp_exceptions_at_powers",
    "single_step",
    "aligned_path",
    "noise_changed",
)
ENERGIES = (
    "energy",
    "energy_hidden",
    "energy_stored",
    "energy_common",
    "noise_energy",
    "noise_energy_hidden",
)
LENS_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "stored_dtype_tuned": "str",
    "last": "bool",
    **dict.fromkeys(COUNTS, "int64"),
    **dict.fromkeys(ENERGIES, "float64"),
}
BINS_COLUMNS = {
    "pair": "str",
    "part": "str",
    "last": "bool",
    "quantity": "str",
    "log2": "float64",
    "count": "int64",
    "changed": "int64",
}
#: Quarter-octave bins: first and last exponent of two, for |w| and for |ΔW| over the half gap.
RANGES = {"weight": (-24, 4), "ratio": (-16, 10)}
PER_OCTAVE = 4
_PIECE = 1 << 22


@dataclass(frozen=True)
class Kept:
    """A checkpoint of a run under its pair's name; `updates` counts optimiser updates where it is known."""

    pair: str
    updates: int | None
    checkpoint: Checkpoint


def measure_lens(
    base: Checkpoint, kept: Sequence[Kept], *, run: str, rate: float | None, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Measure all checkpoints of one run, in the order of training; the last is what "later" refers to.

    Parameters
    ----------
    rate : learning rate, the size of one AdamW update; None where it is not known.
    seed : of the noise.

    Raises
    ------
    PairError : there is no checkpoint, or one that cannot be compared with the base.
    """
    if not kept:
        raise PairError("a run without checkpoints", where=run, expected="at least one")
    rows: list[dict] = []
    bins: dict[tuple, Tensor] = {}
    for one in kept:
        for row in align(base, one.checkpoint):
            if row.status is Status.compared:
                found, hist = _measure_tensor(base, one, kept[-1], row.name, rate, seed)
                last = {"last": one is kept[-1]}
                named = {"pair": one.pair, "stored_dtype_tuned": row.dtype_tuned}
                rows.append({**named, **last, **found})
                _add(bins, one.pair, _part(found["role"]), last["last"], hist)
    return {"lens": typed(rows, LENS_COLUMNS), "lens_bins": typed(_bin_rows(bins), BINS_COLUMNS)}


def _part(of_role: str) -> str:
    """Kind of a tensor for the histograms: linear, embedding and head, or other."""
    kinds = dict.fromkeys(("embedding", "head"), "embedding and head")
    return (kinds | dict.fromkeys(("norm", "bias", "other"), "other")).get(of_role, "linear")


def _measure_tensor(
    base: Checkpoint, one: Kept, last: Kept, name: str, rate: float | None, seed: int
) -> tuple[dict, dict[str, Tensor]]:
    pair = load_pair(base, one.checkpoint, name)
    later = pair if one is last else load_pair(base, last.checkpoint, name)
    scale = frobenius(pair.tuned_stored, pair.base) / max(pair.base.numel(), 1) ** 0.5
    generator = noise_generator(seed, "lens", one.pair, name)
    totals: dict[str, float] = defaultdict(float)
    bins = {quantity: torch.zeros(2, _number(quantity), dtype=torch.int64) for quantity in RANGES}
    for start in range(0, pair.base.numel(), _PIECE):
        piece = _Piece.cut(pair, later, slice(start, start + _PIECE))
        found = {**piece.counts(), **piece.reach(rate, one.updates), **piece.energies()}
        for key, value in {**found, **piece.noise(scale, generator)}.items():
            totals[key] += value
        for quantity, counted in piece.bins().items():
            bins[quantity] += counted
    facts = {"tensor": name, "role": role(name, pair.base.shape), "layer": layer(name)}
    return {**facts, **{key: totals[key] for key in (*COUNTS, *ENERGIES)}}, bins


@dataclass(frozen=True)
class _Piece:
    """Some weights of one tensor, flat: the stored base, displacements from it, and which codes differ."""

    base: Tensor
    displacement: Tensor
    stored: Tensor
    changed: Tensor
    changed_last: Tensor
    ratio: Tensor

    @classmethod
    def cut(cls, pair: TensorPair, later: TensorPair, part: slice) -> _Piece:
        base, tuned, last = (x.reshape(-1)[part] for x in (pair.base, pair.tuned, later.tuned))
        displacement = pair.tuned_stored.reshape(-1)[part].double() - base.double()
        return cls(
            base,
            displacement,
            tuned.double() - base.double(),
            update_mask(base, tuned),
            update_mask(base, last),
            displacement_ratio(base, displacement),
        )

    def counts(self) -> dict[str, int]:
        moved = self.displacement != 0
        hidden = moved & ~self.changed
        wrong = reaches_half_ulp(self.base, self.displacement) != self.changed
        # No bits of the significand: a power of two.
        power = (magnitude_bits(self.base) & 0x7F) == 0
        return {
            "size": self.base.numel(),
            "moved": _count(moved),
            "changed": _count(self.changed),
            "hidden": _count(hidden),
            "hidden_later": _count(hidden & self.changed_last),
            "reverted_later": _count(self.changed & ~self.changed_last),
            "ties": _count(self.ratio == 1),
            "gap_exceptions": _count(crosses(self.base, self.ratio) != self.changed),
            "half_ulp_exceptions": _count(wrong),
            "half_ulp_exceptions_at_powers": _count(wrong & power),
        }

    def reach(self, rate: float | None, updates: int | None) -> dict[str, int]:
        """Weights that one update of the rate's size could change, and a straight path of all of them."""
        gap = half_gap_towards(self.base, sign_word(self.displacement))
        paths = {"single_step": rate or 0.0, "aligned_path": (rate or 0.0) * (updates or 0)}
        return {name: _count(gap <= length) for name, length in paths.items()}

    def energies(self) -> dict[str, float]:
        squares = self.displacement.square()
        return {
            "energy": float(squares.sum()),
            "energy_hidden": float(squares[~self.changed].sum()),
            "energy_stored": float(self.stored.square().sum()),
            "energy_common": float(self.displacement @ self.stored),
        }

    def noise(self, scale: float, generator: torch.Generator) -> dict[str, float]:
        """What storage shows and hides of Gaussian noise of that scale."""
        drawn = scale * torch.randn(self.base.shape, generator=generator, dtype=torch.float64).to(
            self.base.device
        )
        shown = crosses(self.base, displacement_ratio(self.base, drawn))
        squares = drawn.square()
        return {
            "noise_changed": _count(shown),
            "noise_energy": float(squares.sum()),
            "noise_energy_hidden": float(squares[~shown].sum()),
        }

    def bins(self) -> dict[str, Tensor]:
        """Per quantity a row of counts and one of those that changed; a zero has no logarithm, so no bin."""
        values = {"weight": self.base.double().abs(), "ratio": self.ratio}
        return {name: _histogram(name, value, self.changed) for name, value in values.items()}


def _count(mask: Tensor) -> int:
    return int(mask.count_nonzero())


def _number(quantity: str) -> int:
    first, last = RANGES[quantity]
    return PER_OCTAVE * (last - first)


def _histogram(quantity: str, values: Tensor, changed: Tensor) -> Tensor:
    first, number = RANGES[quantity][0], _number(quantity)
    positive = values > 0
    place = ((values[positive].log2() - first) * PER_OCTAVE).floor().long().clamp(0, number - 1)
    kept = [torch.bincount(place, minlength=number)]
    kept.append(torch.bincount(place[changed[positive]], minlength=number))
    return torch.stack(kept).cpu()


def _add(bins: dict[tuple, Tensor], pair: str, part: str, last: bool, found: dict[str, Tensor]) -> None:
    for quantity, counted in found.items():
        key = (pair, part, last, quantity)
        bins[key] = bins[key] + counted if key in bins else counted


def _bin_rows(bins: dict[tuple, Tensor]) -> list[dict]:
    """One row for each bin that holds a weight."""
    rows = []
    for (pair, part, last, quantity), counted in bins.items():
        for number in counted[0].nonzero()[:, 0].tolist():
            log2 = RANGES[quantity][0] + number / PER_OCTAVE
            facts = {"pair": pair, "part": part, "last": last, "quantity": quantity, "log2": log2}
            rows.append({**facts, "count": int(counted[0, number]), "changed": int(counted[1, number])})
    return rows
