"""One row a tensor with everything that is measured of a pair: changes, norms, spectra, angles, overlaps.

The row is put together from those of the other tables: `threegates.measures.changes` for what any tensor has,
`threegates.measures.drift` for the stored update's singular values and angles, `threegates.measures.overlap`
for the bf16 mask on principal and small weights, with its nulls. A tensor without spectra says why in the
column `spectra`; its numbers are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from threegates.checkpoints.pairs import TensorPair
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.null import NullMasks
from threegates.geometry.principal import HEADLINE_ALPHA, TARGETS, headline_rank
from threegates.geometry.spectral_norms import spectral_norm_within
from threegates.measures.by_tensor import Rows, Shared
from threegates.measures.changes import TENSOR_COLUMNS, PairTensors, axis_columns, is_block_matrix
from threegates.measures.drift import DRIFT_COLUMNS, drift_numbers, moved_from
from threegates.measures.overlap import matrix_of, overlap_rows

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
#: What a null of an overlap is summed up by.
OF_NULL = ("mean", "low", "high", "p")
#: Types that have room for nothing.
_NULLABLE = {"int64": "Int64", "bool": "boolean"}

_SPECTRA_COLUMNS = {
    "spectra": "str",
    **{name: _NULLABLE.get(DRIFT_COLUMNS[name], DRIFT_COLUMNS[name]) for name in SPECTRAL},
    "alpha": "float64",
    **{f"{what}_{target}": "float64" for target in TARGETS for what in ("overlap", "density")},
}

MEASURED = "measured"


def table_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the table and their types, with those of the nulls that it is measured with."""
    drawn = {
        f"overlap_{target}_{null.name}_{what}": "float64"
        for target in TARGETS
        for null in nulls
        for what in OF_NULL
    }
    return {**TENSOR_COLUMNS, **_SPECTRA_COLUMNS, **drawn, "draws": "int64"}


@dataclass(frozen=True)
class PairTable:
    """A pair with one row a tensor.

    draws : masks under each null of overlaps and, with axes, of row and column ratios; 0 leaves their columns
    empty. spectra : whether spectra, angles and overlaps are measured at all. nulls : those beside it.
    """

    base: Checkpoint
    tuned: Checkpoint
    name: str
    draws: int = 0
    seed: int = 0
    axes: bool = False
    spectra: bool = True
    nulls: Sequence[NullMasks] = ()

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        """Both tables and their columns."""
        return {"tensor": table_columns(self.nulls), "axis": axis_columns(self.nulls)}

    @cached_property
    def tensors(self) -> PairTensors:
        """The half of the measurement that every tensor has."""
        return PairTensors(self.base, self.tuned, self.name, self.draws, self.seed, self.axes, self.nulls)

    @property
    def names(self) -> list[str]:
        """All tensors."""
        return self.tensors.names

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """The row of one tensor, and the axis table's two if they are asked for."""
        facts = self.tensors.facts(tensor)
        if not self.tensors.compared(tensor):
            why = f"not compared: {facts['status']}"
            return {"tensor": [facts | {"spectra": why, "draws": 0}], "axis": []}
        why = self._why_not(facts)
        pair = self.tensors.loaded(tensor, facts, whole=not why)
        _, found = self.tensors.measured(tensor, facts, pair)
        row = found["tensor"][0]
        spectra = {"spectra": why, "draws": 0}
        if pair and not why:
            spectra = self._spectra(pair, row["storage_norm_scale"], shared)
        return {**found, "tensor": [row | spectra]}

    def _why_not(self, facts: dict) -> str:
        """Why a compared tensor has no spectra; nothing if it has."""
        if len(facts["shape"]) != 2:
            return "not a matrix"
        if not facts["size"]:
            return "no entries"
        if not is_block_matrix(facts):
            return "not in a block"
        return "" if self.spectra else "not asked for"

    def _spectra(self, pair: TensorPair, scale: float, shared: Shared) -> dict:
        moved = moved_from(pair.base_stored, pair.tuned_stored, shared, spectral_norm_within)
        numbers = drift_numbers(moved)
        overlaps = self._overlaps(pair, scale, shared)
        chosen = {name: numbers[name] for name in SPECTRAL}
        return {"spectra": MEASURED, **chosen, "alpha": HEADLINE_ALPHA, **overlaps, "draws": self.draws}

    def _overlaps(self, pair: TensorPair, scale: float, shared: Shared) -> dict[str, float]:
        rank = headline_rank(pair.base.shape)
        matrix = matrix_of(pair, self.name, self.draws, self.seed, rank, shared, self.nulls, scale)
        columns: dict[str, float] = {}
        for row in overlap_rows(matrix, {"bf16": update_mask(pair.base, pair.tuned)}):
            target = row["target"]
            columns |= {f"{what}_{target}": row[what] for what in ("overlap", "density")}
            drawn = {f"{null.name}_{what}" for null in self.nulls for what in OF_NULL} & row.keys()
            columns |= {f"overlap_{target}_{name}": row[name] for name in drawn}
        return columns
