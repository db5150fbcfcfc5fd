"""One row a tensor with everything that is measured of a pair: changes, norms, spectra, angles, overlaps.

The row is put together from those of the other tables: `threegates.measures.changes` for what any tensor has,
`threegates.measures.drift` for the stored update's singular values and angles, and the bf16 mask's overlaps
with principal and small weights. Nulls are laws, of `threegates.measures.null_laws`. A tensor without spectra
says why in the column `spectra`; its numbers are empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from threegates.checkpoints.adapters.notes import adapter_of
from threegates.checkpoints.formats.roles import block, is_matrix
from threegates.checkpoints.pairs import PairRows, TensorPair, load_pair, load_rows, rows_of_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.laws.codes import CodeCounter
from threegates.geometry.laws.noise import noise_sparsity
from threegates.geometry.low_rank import singular_values_of_product
from threegates.geometry.masks import pack, unpack
from threegates.geometry.nulls.null import NullMasks, NullOfLaw
from threegates.geometry.principal import (
    HEADLINE_ALPHA,
    TARGETS,
    headline_rank,
    overlaps,
    principal_targets,
)
from threegates.geometry.spectra import spectral_shift
from threegates.geometry.spectral_norms import spectral_norm_within
from threegates.geometry.streamed_spectra import GramSum, right_angles, small_side
from threegates.measures.bases import Base, base_beside_spectrum
from threegates.measures.by_tensor import Rows, Shared
from threegates.measures.changes import (
    OBSERVED_AXIS_COLUMNS,
    TENSOR_COLUMNS,
    Counted,
    PairTensors,
    count,
    is_block_matrix,
    numbers_by_codes,
    numbers_of,
    observed_axis,
)
from threegates.measures.drift import DRIFT_COLUMNS, Difference, drift_numbers, moved_against
from threegates.measures.floors import FLOOR_COLUMNS, floor_numbers
from threegates.measures.merging import ADAPTER_COLUMNS, adapter_rows
from threegates.measures.null_laws import MaskBeside, axis_rows, beside, law_columns

AXES = ("row", "column")
#: Columns of the drift table that a row takes over.
SPECTRAL = (
    "accuracy",
    "path",
    "proof",
    "proved",
    "k",
    "gap",
    "nss",
    "nss_error",
    "angle_left_max",
    "angle_left_mean",
    "angle_right_max",
    "angle_right_mean",
    "angle_bound",
    "angle_floor",
    "resolved",
    "spectral_norm_delta",
    "stable_rank",
    "energy",
    "energy_expected",
)
#: Types that have room for nothing.
_NULLABLE = {"int64": "Int64", "bool": "boolean"}

_SPECTRA_COLUMNS = {
    "spectra": "str",
    **{name: _NULLABLE.get(DRIFT_COLUMNS[name], DRIFT_COLUMNS[name]) for name in SPECTRAL},
    "alpha": "float64",
    **{f"{what}_{target}": "float64" for target in TARGETS for what in ("overlap", "density")},
}

MEASURED = "measured"
#: Of an embedding, a head or another tall matrix outside of blocks: no left angles, overlaps and ‖ΔW‖₂.
SMALL_SIDE = "of the smaller side alone"
#: Name of the table of an adapter's matrices.
ADAPTER = "adapter"
#: Where a tensor lies: of a vision tower's block, too, the number, and the stack that counts it.
_FACT_COLUMNS = {**{name: TENSOR_COLUMNS[name] for name in ("pair", "tensor", "role")}, "stack": "str"}


def _target_of(column: str) -> str:
    """The target that a column of overlaps is of: the longest one that its name goes on with."""
    rest = column.partition("_")[2]
    return max((one for one in TARGETS if rest == one or rest.startswith(f"{one}_")), key=len)


def table_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the table and their types, with those of the nulls that it is measured with."""
    stems = [f"overlap_{target}_{null.name}" for target in TARGETS for null in nulls]
    beside = {name: kind for stem in stems for name, kind in law_columns(stem).items()}
    return {**_FACT_COLUMNS, **TENSOR_COLUMNS, **FLOOR_COLUMNS, **_SPECTRA_COLUMNS, **beside}


def axis_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the table of rows and columns, with those of the nulls beside their dispersion."""
    beside = {name: kind for null in nulls for name, kind in law_columns(null.name).items()}
    return {**OBSERVED_AXIS_COLUMNS, **beside}


@dataclass(frozen=True)
class PairTable:
    """A pair with one row a tensor.

    axes : whether row and column ratios are measured. spectra : whether spectra, angles and overlaps are
    measured at all. nulls : those beside overlaps and ratios. seed : of what has no law and is drawn.
    accuracy : of spectra of matrices too large for float64 SVDs, 'fast', 'certified' or 'reference'.
    """

    base: Checkpoint
    tuned: Checkpoint
    name: str
    seed: int = 0
    axes: bool = False
    spectra: bool = True
    nulls: Sequence[NullOfLaw] = ()
    accuracy: str = "certified"

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        """The tables and their columns; that of adapters where the tuned side is one."""
        both = {"tensor": table_columns(self.nulls), "axis": axis_columns(self.nulls)}
        return both | ({ADAPTER: ADAPTER_COLUMNS} if adapter_of(self.tuned) else {})

    @cached_property
    def tensors(self) -> PairTensors:
        """The half of the measurement that every tensor has."""
        return PairTensors(self.base, self.tuned, self.name)

    @property
    def names(self) -> list[str]:
        """All tensors."""
        return self.tensors.names

    def facts(self, tensor: str) -> dict:
        """What the headers say of a tensor, with the stack and the number of the block that it lies in."""
        found = block(tensor)
        stack, number = found if found is not None else ("", None)
        sides = {"stored_dtype_base": self.base, "stored_dtype_tuned": self.tuned}
        stored = {name: one.infos[tensor].stored_as for name, one in sides.items() if tensor in one.infos}
        return self.tensors.facts(tensor) | stored | {"stack": stack, "layer": number}

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """The row of one tensor, the axis table's two if they are asked for, and an adapter's."""
        view = adapter_of(self.tuned)
        rows = self._measured(tensor, shared)
        return rows | ({ADAPTER: adapter_rows(view, tensor, self.name)} if view else {})

    def _measured(self, tensor: str, shared: Shared) -> Rows:
        facts = self.facts(tensor)
        if not self.tensors.compared(tensor):
            return {"tensor": [facts | {"spectra": f"not compared: {facts['status']}"}], "axis": []}
        why, axes = self._why_not(facts), self.axes and is_block_matrix(facts)
        if why and not axes:
            floor = floor_numbers(self.base, self.tuned, tensor)
            return {"tensor": [facts | {"spectra": why} | self._streamed(facts) | floor], "axis": []}
        pair = load_pair(self.base, self.tuned, tensor)
        counted = count(rows_of_pair(pair))
        matrix = _Matrix(pair, self, counted, shared)
        spectra = {"spectra": why} if why else matrix.spectra()
        axis = matrix.axis_rows(facts) if axes else []
        floor = floor_numbers(self.base, self.tuned, tensor)
        return {"tensor": [facts | matrix.numbers() | floor | spectra], "axis": axis}

    def _streamed(self, facts: dict) -> dict:
        """What a tensor has of which only a block is held at a time, spectra of a tall matrix among it."""
        rows, counter = load_rows(self.base, self.tuned, facts["tensor"]), CodeCounter()
        grams = _Grams(facts["shape"]) if self.spectra and has_small_side(facts) else None
        counted = count(grams.seeing(rows) if grams else rows, look=counter.add)
        return numbers_by_codes(counted, counter.whole()) | (grams.numbers(counted) if grams else {})

    def _why_not(self, facts: dict) -> str:
        """Why a compared tensor has no spectra; nothing if it has."""
        if not is_matrix(facts["tensor"], facts["shape"]):
            return "not a matrix"
        if not facts["size"]:
            return "no entries"
        if not is_block_matrix(facts):
            return "not in a block"
        return "" if self.spectra else "not asked for"


def has_small_side(facts: dict) -> bool:
    """Whether a matrix lies in no block and is at least as tall as wide, as embeddings and heads are."""
    outside = is_matrix(facts["tensor"], facts["shape"]) and facts["layer"] is None
    return outside and facts["size"] > 0 and facts["shape"][0] >= facts["shape"][1]


class _Grams:
    """Both sides' Gram matrices of the smaller side, summed up while the rows are counted."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)
        self._base, self._tuned = (GramSum(shape[1]) for _ in range(2))

    def seeing(self, rows: PairRows) -> PairRows:
        """The same rows, each taken into the sums as it is read."""

        def block(start: int, stop: int) -> TensorPair:
            pair = rows.block(start, stop)
            self._base.add(pair.base_stored)
            self._tuned.add(pair.tuned_stored)
            return pair

        return replace(rows, block=block)

    def numbers(self, counted: Counted) -> dict:
        """Columns of the spectra, as far as the smaller side knows them."""
        k, rows = headline_rank(self._shape), self._base.rows
        base = small_side(self._base.whole(), rows, k)
        tuned = small_side(self._tuned.whole(), rows, k) if counted.stored else base
        angles = right_angles(base, tuned)
        nss, nss_error = spectral_shift(base.spectrum, tuned.spectrum)
        known = angles.bound < math.pi / 2
        return {
            "spectra": SMALL_SIDE,
            "accuracy": "certified",
            "path": "gram" if counted.stored else "unchanged",
            "proof": "complete",
            "proved": True,
            "k": k,
            "gap": min(base.gap, tuned.gap),
            "nss": nss if math.isfinite(nss) else math.nan,
            "nss_error": nss_error,
            "angle_right_max": angles.maximum if known else math.nan,
            "angle_right_mean": angles.mean if known else math.nan,
            "angle_bound": angles.bound,
            "angle_floor": angles.floor,
            "resolved": 1 - float(angles.unresolved.double().mean()) if known else 0.0,
        }


@dataclass(frozen=True)
class _Matrix:
    """A matrix in a block that is held as a whole."""

    pair: TensorPair
    table: PairTable
    counted: Counted
    shared: Shared

    @cached_property
    def beside(self) -> MaskBeside:
        """Its mask, and its targets where overlaps are measured, with what nulls hang on."""
        packed = list(self.targets.values()) if self.table.spectra else []
        shape = tuple(self.pair.base.shape)
        return MaskBeside(
            self.table.name,
            self.pair.name,
            self.pair.base,
            # Loading has refused what is not finite, which `update_mask` would look for once more.
            self.pair.base != self.pair.tuned,
            [unpack(one, shape) for one in packed],
            self.counted.norm_delta_bf16,
            self.table.seed,
        )

    @cached_property
    def targets(self) -> dict[str, Tensor]:
        """Packed targets of the base at the headline rank and share."""
        base = self.pair.base
        k = headline_rank(base.shape)
        leading = self._side(base).leading.leading
        return self.shared.of(
            ("targets", k),
            base,
            lambda: principal_targets(base, leading.left[:, :k], leading.values[:k], leading.right[:, :k]),
        )

    def numbers(self) -> dict:
        """What any tensor has."""
        seen = self.beside.seen
        return numbers_of(self.counted, seen.scale, noise_sparsity(seen.noise, seen.scale))

    def spectra(self) -> dict:
        """Singular values, angles and overlaps."""
        side = self._side(self.pair.base_stored)
        numbers = drift_numbers(moved_against(side, self.pair.tuned_stored, self._difference))
        chosen = {name: numbers[name] for name in SPECTRAL}
        # Without leading subspaces nothing lies in them, and of a zero base nothing is small.
        leading = numbers["angle_bound"] < math.pi / 2
        if not leading:
            chosen |= {"energy": math.nan, "energy_expected": math.nan}
        meant = [one for one in TARGETS if leading or (one == "low" and self.counted.norm_base > 0)]
        return {"spectra": MEASURED, **chosen, "alpha": HEADLINE_ALPHA, **self._overlaps(meant)}

    def _side(self, base: Tensor) -> Base:
        """The base as stored or in bf16, which often are one, with all singular values."""
        if base.dtype == self.pair.base_stored.dtype:
            return self._stored_side
        return base_beside_spectrum(base, headline_rank(base.shape), self.shared, self.table.accuracy)

    @cached_property
    def _stored_side(self) -> Base:
        base = self.pair.base_stored
        return base_beside_spectrum(base, headline_rank(base.shape), self.shared, self.table.accuracy)

    def _difference(self, tuned: Tensor, base: Tensor) -> Difference:
        """ΔW in the type that both sides are measured in, each entry rounded once; its norm is known."""
        delta = tuned - base
        return Difference(delta, self.counted.norm_delta, self._spectral_norm(delta))

    def _spectral_norm(self, delta: Tensor) -> float:
        """‖ΔW‖₂; that of an adapter's factors takes no iteration."""
        view = adapter_of(self.table.tuned)
        made = view.made(self.pair.name) if view else None
        if made is None or made.scale is not None:
            return spectral_norm_within(delta)
        return float(singular_values_of_product(made.update.left, made.update.right)[0])

    def _overlaps(self, meant: Sequence[str]) -> dict:
        """Overlaps with the targets that mean something here, beside the nulls'; others are empty."""
        found = overlaps(pack(self.beside.mask), self.targets, self.pair.base.numel())
        columns: dict = {}
        for target, one in found.items():
            columns |= {f"overlap_{target}": one.overlap, f"density_{target}": one.density}
        for null in self.table.nulls:
            for (target, one), law in zip(found.items(), self.beside.overlaps(null), strict=True):
                columns |= beside(f"overlap_{target}_{null.name}", one.overlap, law, "two-sided")
        return {name: value for name, value in columns.items() if _target_of(name) in meant}

    def axis_rows(self, facts: dict) -> list[dict]:
        """Both rows of the axis table."""
        rows = [observed_axis(facts, axis, self.counted.counts) for axis in AXES]
        return axis_rows(rows, self.beside, self.table.nulls)
