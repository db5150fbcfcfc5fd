"""What a pair's weights show tensor by tensor: changed entries, sparsity, norms, and rows and columns.

Two tables. ``tensor``: one row a tensor, skipped by no one (`status` says why a row has no numbers).
``tensor_sweep``: the same at coarser tolerances. Noise that a row is held against is arithmetic on the codes
of the base (null 1b): nothing is drawn.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
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
    load_rows,
    row_ranges,
)
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.laws.codes import CodeCounter, CodeCounts
from threegates.geometry.laws.noise import noise_of, noise_sparsity, scale_of_norm
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
from threegates.geometry.stripes import ratio_dispersion
from threegates.measures.by_tensor import Rows, Shared, measure_all
from threegates.measures.norms import squared_norm

#: Tolerances of Definition 2.1 that stored changes are also looked at with, beside the paper's own: bf16
#: values lie .4 to .8 % apart, so that these leave out some or all changes by one code.
COARSE_ETAS = (5e-3, 1e-2)

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


@dataclass(frozen=True)
class PairTensors:
    """A pair whose tensors are counted and measured one by one, of which only a block is held at a time.

    name : of the pair, in the column `pair`.
    """

    base: Checkpoint
    tuned: Checkpoint
    name: str

    @property
    def tables(self) -> dict[str, dict[str, str]]:
        """Tables and their columns."""
        return {"tensor": TENSOR_COLUMNS, "tensor_sweep": TENSOR_SWEEP_COLUMNS}

    @cached_property
    def aligned(self) -> dict[str, AlignedTensor]:
        """Every tensor of the pair, by name."""
        return {row.name: row for row in align(self.base, self.tuned)}

    @property
    def names(self) -> list[str]:
        """All of them: a tensor that cannot be compared has a row that says so."""
        return list(self.aligned)

    def rows(self, tensor: str, shared: Shared) -> Rows:
        """The row of one tensor, and its rows at coarser tolerances."""
        facts = self.facts(tensor)
        if not self.compared(tensor):
            return {"tensor": [facts], "tensor_sweep": []}
        counter = CodeCounter()
        counted = count(load_rows(self.base, self.tuned, tensor), COARSE_ETAS, counter.add)
        codes = counter.whole()
        row = facts | numbers_by_codes(counted, codes)
        return {"tensor": [row], "tensor_sweep": _coarse_rows(counted, codes, row)}

    def facts(self, tensor: str) -> dict:
        """What the headers say of a tensor: the first columns of its row."""
        return facts_of(self.aligned[tensor], self.name)

    def compared(self, tensor: str) -> bool:
        """Whether a tensor can be compared; one that cannot is looked at for its values alone."""
        row = self.aligned[tensor]
        if row.status is not Status.compared:
            _check_sides(self.base, self.tuned, row)
        return row.status is Status.compared


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


def measure_pair(base: Checkpoint, tuned: Checkpoint, *, name: str) -> dict[str, pd.DataFrame]:
    """Measure every tensor of a pair, one at a time.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairTensors(base, tuned, name))


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


def numbers_by_codes(counted: Counted, codes: CodeCounts) -> dict:
    """`numbers_of` a tensor, with the noise of the stored update's norm found from the base's codes."""
    if not codes.size:
        return numbers_of(counted, 0.0, (math.nan, math.nan))
    scale = scale_of_norm(codes, counted.norm_delta_bf16)
    return numbers_of(counted, scale, noise_sparsity(noise_of(codes), scale))


def _coarse_rows(counted: Counted, codes: CodeCounts, row: dict) -> list[dict]:
    """The tensor's row at coarser tolerances; what float32 shows is the same at all of them."""
    kept = {name: row[name] for name in TENSOR_SWEEP_COLUMNS if name in row}
    rows = []
    for eta, changed in counted.coarse.items():
        noise, _ = noise_sparsity(noise_of(codes, eta), row["storage_norm_scale"])
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


def observed_axis(facts: dict, axis: str, mask: Tensor | MaskCounts) -> dict:
    """Ratios of a matrix along an axis and their dispersion, with the matrix's names."""
    ratio, dispersion = axis_facts(mask, axis)
    keys = {name: facts[name] for name in ("pair", "tensor", "role", "layer")}
    numbers = {"density": float(ratio.mean()), "ratio": ratio.tolist(), "dispersion": dispersion}
    return {**keys, "axis": axis, **numbers}
