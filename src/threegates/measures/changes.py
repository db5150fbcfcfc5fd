"""What a pair's weights show tensor by tensor: changed entries, sparsity, norms, and rows and columns.

Two tables. ``tensor``: one row a tensor, skipped by no one (`status` says why a row has no numbers).
``axis``: two rows a matrix, its row ratios and its column ratios with their dispersion beside the nulls'.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.byte_tensors import write_byte_tensors
from threegates.checkpoints.formats.roles import is_matrix, layer, role
from threegates.checkpoints.pairs import (
    AlignedTensor,
    PairRows,
    Status,
    TensorPair,
    align,
    check_finite,
    load_pair,
    load_rows,
    row_ranges,
    rows_of_pair,
)
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.masks import (
    TILE,
    MaskCounts,
    column_ratio,
    count_changes,
    pack,
    row_ratio,
    sparsity,
    update_mask,
)
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullMasks
from threegates.geometry.stripes import ratio_dispersion
from threegates.measures.by_tensor import Rows, Shared, measure_all
from threegates.measures.draws import (
    COARSE_ETAS,
    EvenSample,
    noise_scale_for,
    noise_sparsity,
    null_columns,
    null_masks,
    observe,
    squared_norm,
    summary_columns,
)

TENSOR_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "status": "str",
    "shape": "object",
    "shape_tuned": "object",
    "size": "int64",
    "stored_dtype_base": "str",
    "stored_dtype_tuned": "str",
    "changed": "Int64",
    "sparsity": "float64",
    "changed_stored": "Int64",
    "sparsity_fp32": "float64",
    "norm_base": "float64",
    "norm_delta": "float64",
    "norm_delta_bf16": "float64",
    "storage_norm_scale": "float64",
    "sparsity_storage_norm": "float64",
    "sparsity_storage_norm_sd": "float64",
}
#: Of a pair at tolerances coarser than the paper's: what judges sparsity, in the columns of the tensor table.
TENSOR_SWEEP_COLUMNS = {
    **{name: TENSOR_COLUMNS[name] for name in ("pair", "tensor", "role", "layer", "status", "size")},
    "stored_dtype_tuned": "str",
    "eta": "float64",
    "changed": "int64",
    "sparsity": "float64",
    "sparsity_fp32": "float64",
    "sparsity_storage_norm": "float64",
}
#: What is observed along an axis.
OBSERVED_AXIS_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "axis": "str",
    "density": "float64",
    "ratio": "object",
    "dispersion": "float64",
}


def axis_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Columns of the axis table and their types, with those of the nulls that it is measured with."""
    return {**OBSERVED_AXIS_COLUMNS, **summary_columns(nulls), "draws": "int64"}


@dataclass(frozen=True)
class PairTensors:
    """A pair whose tensors are counted and measured one by one; parameters as of `measure_pair`."""

    base: Checkpoint
    tuned: Checkpoint
    name: str
    draws: int = 0
    seed: int = 0
    axes: bool = True
    nulls: Sequence[NullMasks] = ()

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        """Tables and their columns."""
        axis = axis_columns(self.nulls)
        return {"tensor": TENSOR_COLUMNS, "axis": axis, "tensor_sweep": TENSOR_SWEEP_COLUMNS}

    @cached_property
    def aligned(self) -> dict[str, AlignedTensor]:
        """Every tensor of the pair, by name."""
        return {row.name: row for row in align(self.base, self.tuned)}

    @property
    def names(self) -> list[str]:
        """All of them: a tensor that cannot be compared has a row that says so."""
        return list(self.aligned)

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """The row of one tensor, and the axis table's two if it is a matrix in a block."""
        facts = self.facts(tensor)
        if not self.compared(tensor):
            return {"tensor": [facts], "axis": [], "tensor_sweep": []}
        pair = self.loaded(tensor, facts)
        rows = rows_of_pair(pair) if pair else load_rows(self.base, self.tuned, tensor)
        sample = EvenSample(rows.size)
        counted = count(rows, COARSE_ETAS, sample.add)
        generator = noise_generator(self.seed, "scale", self.name, tensor)
        scale = noise_scale_for(counted.norm_delta_bf16, sample, generator)
        row = facts | numbers_of(counted, scale, noise_sparsity(sample, scale))
        axis: list[dict] = []
        if self.axes and is_block_matrix(facts):
            axis = self._axis_rows(pair, facts, counted.counts, scale)
        return {"tensor": [row], "axis": axis, "tensor_sweep": _coarse_rows(counted, sample, row)}

    def facts(self, tensor: str) -> dict:
        """What the headers say of a tensor: the first columns of its row."""
        return facts_of(self.aligned[tensor], self.name)

    def compared(self, tensor: str) -> bool:
        """Whether a tensor can be compared; one that cannot is looked at for its values alone."""
        row = self.aligned[tensor]
        if row.status is not Status.compared:
            _check_sides(self.base, self.tuned, row)
        return row.status is Status.compared

    def loaded(self, tensor: str, facts: dict) -> TensorPair | None:
        """Both sides of a compared tensor, if its null masks need the whole of it."""
        drawn = self.axes and self.draws and is_block_matrix(facts)
        return load_pair(self.base, self.tuned, tensor) if drawn else None

    def _axis_rows(
        self, pair: TensorPair | None, facts: dict, counts: MaskCounts, scale: float
    ) -> list[dict]:
        """Both rows of a matrix; with null masks beside it only where it is held as a whole."""
        rows = {axis: axis_row(facts, axis, counts, self.draws) for axis in ("row", "column")}
        if pair is None or not self.draws:
            return list(rows.values())
        observed = observe(facts["pair"], pair, self.seed, scale)
        for null in self.nulls:
            masks = islice(null_masks(null, observed, self.seed), self.draws)
            drawn = [{axis: axis_facts(mask, axis)[1] for axis in rows} for mask in masks]
            for axis, row in rows.items():
                row |= null_columns(null.name, row["dispersion"], [draw[axis] for draw in drawn])
        return list(rows.values())


def is_block_matrix(facts: dict) -> bool:
    """Whether a tensor is a matrix with entries that lies in a block, so that it has axes and spectra."""
    return is_matrix(facts["tensor"], facts["shape"]) and facts["layer"] is not None and facts["size"] > 0


@dataclass(frozen=True)
class Counted:
    """What one pass over both sides of a tensor gives.

    counts : of the bf16 update mask; stored : entries that differ as stored; coarse : changes by tolerance.
    Norms are Frobenius's in float64: of the base in bf16, and of ΔW as stored and between the bf16 tensors.
    """

    counts: MaskCounts
    stored: int
    coarse: dict[float, int]
    norm_base: float
    norm_delta: float
    norm_delta_bf16: float


def count(
    rows: PairRows, etas: tuple[float, ...] = (), look: Callable[[Tensor], None] | None = None
) -> Counted:
    """Count changes and sum up norms, block by block; counts do not depend on the blocks, norms to 1e-15.

    look : sees every block of the base in bf16 on its way.
    """
    counts = _SumOfCounts(rows.shape)
    changed: dict[float | str, int] = dict.fromkeys(("stored", *etas), 0)
    squares: dict[str, list[float]] = {"base": [], "delta": [], "delta_bf16": []}
    for pair in rows:
        block = count_changes(pair.base, pair.tuned)
        counts.add(block)
        squares["base"].append(squared_norm(pair.base))
        squares["delta_bf16"].append(squared_norm(pair.tuned, pair.base))
        moved, square = _as_it_is_stored(pair, block.changed, squares["delta_bf16"][-1])
        changed["stored"] += moved
        squares["delta"].append(square)
        for eta in etas:
            changed[eta] += _changed_beyond(pair, eta)
        if look:
            look(pair.base)
    norms = {f"norm_{name}": math.sqrt(math.fsum(values)) for name, values in squares.items()}
    coarse = {eta: changed[eta] for eta in etas}
    return Counted(counts.whole(), changed["stored"], coarse, **norms)


def _as_it_is_stored(pair: TensorPair, changed: int, square: float) -> tuple[int, float]:
    """Entries that differ as stored and ‖ΔW‖² of that; they are the given ones where storage is bf16."""
    if pair.base_stored.dtype == pair.tuned_stored.dtype == torch.bfloat16:
        return changed, square
    before, after = as_stored(pair)
    return int((before != after).count_nonzero()), squared_norm(after, before)


class _SumOfCounts:
    """Counts of a tensor from the counts of its blocks of rows, added up in place."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.changed, self._seen = shape, 0, 0
        matrix = len(shape) == 2
        self.rows, self.columns = (torch.zeros(n, dtype=torch.int64) for n in (shape if matrix else (0, 0)))

    def add(self, block: MaskCounts) -> None:
        self.changed += block.changed
        if block.rows is not None and block.columns is not None:
            stop = self._seen + len(block.rows)
            self.rows[self._seen : stop] = block.rows
            self.columns += block.columns.cpu()
            self._seen = stop

    def whole(self) -> MaskCounts:
        matrix = len(self.shape) == 2
        rows, columns = (self.rows if matrix else None, self.columns if matrix else None)
        return MaskCounts(self.changed, math.prod(self.shape), rows, columns, self.shape)


def _changed_beyond(pair: TensorPair, eta: float) -> int:
    """Changes by Definition 2.1 at a tolerance that leaves some out, a tile at a time: float64 is wide."""
    tiles = zip(*(side.reshape(-1).split(TILE) for side in (pair.base, pair.tuned)), strict=True)
    return sum(int(update_mask(before, after, eta).count_nonzero()) for before, after in tiles)


def measure_pair(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    name: str,
    draws: int = 0,
    seed: int = 0,
    axes: bool = True,
    nulls: Sequence[NullMasks] = (),
) -> dict[str, pd.DataFrame]:
    """Measure every tensor of a pair, one at a time.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    draws : masks per null and matrix in the axis table; 0 leaves the nulls' columns there empty.
    seed : of the nulls.
    axes : whether the axis table is measured at all.
    nulls : those beside it.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairTensors(base, tuned, name, draws, seed, axes, nulls))


def write_masks(
    base: Checkpoint, tuned: Checkpoint, path: Path, names: Collection[str] | None = None
) -> None:
    """Write the update mask of every compared tensor, packed eight entries a byte, as safetensors.

    names : of those that are written; all by default.

    Unpack with `threegates.geometry.masks.unpack`; the shapes are in the file's metadata under ``shapes``.
    Only a block of a tensor is held at a time, of the masks as of the weights.
    """
    compared = (row for row in align(base, tuned) if row.status is Status.compared)
    shapes = {row.name: sides(row)[0] for row in compared if names is None or row.name in names}
    sizes = {name: -(-math.prod(shape) // 8) for name, shape in shapes.items()}
    listed = {name: list(shape) for name, shape in shapes.items()}
    write_byte_tensors(
        path,
        sizes,
        lambda name: packed_masks(load_rows(base, tuned, name)),
        {"shapes": json.dumps(listed, sort_keys=True)},
    )


def packed_masks(rows: PairRows) -> Iterator[Tensor]:
    """The packed update mask of a tensor in pieces, which together are `pack` of all of it."""
    rest = torch.zeros(0, dtype=torch.bool)
    for pair in rows:
        mask = update_mask(pair.base, pair.tuned).reshape(-1).cpu()
        flat = torch.cat([rest, mask]) if len(rest) else mask
        whole = len(flat) // 8 * 8
        yield pack(flat[:whole])
        rest = flat[whole:].clone()
    yield pack(rest)


def sides(row: AlignedTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of both sides. A side that lacks the tensor has the other side's shape."""
    shape = row.shape_base if row.shape_base is not None else row.shape_tuned
    assert shape is not None
    return shape, row.shape_tuned if row.shape_tuned is not None else shape


def matrices(rows: list[AlignedTensor], of_layer: int | None = None) -> Iterator[str]:
    """Names of the compared matrices that lie in a block (in that block, if one is named)."""
    for row in rows:
        number = layer(row.name)
        two = row.status is Status.compared and is_matrix(row.name, sides(row)[0])
        if two and number is not None and of_layer in (None, number):
            yield row.name


def axis_facts(mask: Tensor | MaskCounts, axis: str) -> tuple[Tensor, float]:
    """Row or column ratios of a mask or of its counts, and their dispersion."""
    ratio = row_ratio(mask) if axis == "row" else column_ratio(mask)
    return ratio, ratio_dispersion(ratio, mask.shape[1 if axis == "row" else 0])


def _check_sides(base: Checkpoint, tuned: Checkpoint, row: AlignedTensor) -> None:
    """Refuse values that are not finite in a tensor that is only reported, as in one that is compared."""
    for checkpoint, side, shape in ((base, "base", row.shape_base), (tuned, "tuned", row.shape_tuned)):
        if shape is not None:
            check_finite(checkpoint, row.name, side)


def facts_of(row: AlignedTensor, name: str) -> dict:
    """What the headers say of a tensor of the pair of that name: the first columns of its row."""
    shape, shape_tuned = sides(row)
    return {
        "pair": name,
        "tensor": row.name,
        "role": role(row.name, shape),
        "layer": layer(row.name),
        "status": str(row.status),
        "shape": list(shape),
        "shape_tuned": list(shape_tuned),
        "size": int(np.prod(shape, dtype=np.int64)),
        "stored_dtype_base": row.dtype_base,
        "stored_dtype_tuned": row.dtype_tuned,
    }


def numbers_of(counted: Counted, scale: float, noise: tuple[float, float]) -> dict:
    """The counts and norms of a row; scale and sparsity (with sd) of noise of the stored update's norm."""
    counts = counted.counts
    return {
        "changed": counts.changed,
        "sparsity": counts.sparsity,
        "changed_stored": counted.stored,
        "sparsity_fp32": sparsity(counted.stored, counts.size),
        "norm_base": counted.norm_base,
        "norm_delta": counted.norm_delta,
        "norm_delta_bf16": counted.norm_delta_bf16,
        "storage_norm_scale": scale,
        "sparsity_storage_norm": noise[0],
        "sparsity_storage_norm_sd": noise[1],
    }


def _coarse_rows(counted: Counted, sample: EvenSample, row: dict) -> list[dict]:
    """The tensor's row at coarser tolerances; what float32 shows is the same at all of them."""
    kept = {name: row[name] for name in TENSOR_SWEEP_COLUMNS if name in row}
    rows = []
    for eta, changed in counted.coarse.items():
        noise, _ = noise_sparsity(sample, row["storage_norm_scale"], eta)
        rows.append({**kept, "eta": eta, "changed": changed, "sparsity": sparsity(changed, row["size"])})
        rows[-1]["sparsity_storage_norm"] = noise
    return rows


def as_stored(pair: TensorPair) -> tuple[Tensor, Tensor]:
    """Both sides as stored, in the first of fp32 and fp64 that holds them exactly."""
    wide = torch.float64 in (pair.base_stored.dtype, pair.tuned_stored.dtype)
    dtype = torch.float64 if wide else torch.float32
    return pair.base_stored.to(dtype), pair.tuned_stored.to(dtype)


def difference(after: Tensor, before: Tensor) -> Tensor:
    """ΔW of a matrix in float64, by blocks of rows: neither side is ever held in float64 as a whole."""
    delta = torch.empty(after.shape, dtype=torch.float64, device=after.device)
    for start, stop in row_ranges(tuple(after.shape)):
        delta[start:stop] = after[start:stop].double() - before[start:stop].double()
    return delta


def axis_row(facts: dict, axis: str, mask: Tensor | MaskCounts, draws: int) -> dict:
    """The observed half of a row of the axis table."""
    return {**observed_axis(facts, axis, mask), "draws": draws}


def observed_axis(facts: dict, axis: str, mask: Tensor | MaskCounts) -> dict:
    """Ratios of a matrix along an axis and their dispersion, with the matrix's names."""
    ratio, dispersion = axis_facts(mask, axis)
    keys = {name: facts[name] for name in ("pair", "tensor", "role", "layer")}
    numbers = {"density": float(ratio.mean()), "ratio": ratio.tolist(), "dispersion": dispersion}
    return {**keys, "axis": axis, **numbers}
