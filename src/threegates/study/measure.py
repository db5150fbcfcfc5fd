"""What a pair's weights show tensor by tensor: changed entries, sparsity, norms, and rows and columns.

Two tables. ``tensor``: one row a tensor, skipped by no one (`status` says why a row has no numbers).
``axis``: two rows a matrix, its row ratios and its column ratios with their dispersion beside the nulls'.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from threegates.atomic import atomic_path
from threegates.checkpoints.pairs import AlignedTensor, Status, TensorPair, align, load_finite, load_pair
from threegates.checkpoints.roles import layer, role
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.masks import column_ratio, count_changes, pack, row_ratio, update_mask
from threegates.geometry.nulls import noise_generator
from threegates.geometry.stripes import ratio_dispersion
from threegates.study.by_tensor import Rows, Shared, measure_all
from threegates.study.draws import (
    COARSE_ETAS,
    NULLS,
    SUMMARY,
    frobenius,
    noise_scale,
    noise_sparsity,
    null_columns,
    null_stream,
    observe,
    update_norm,
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
AXIS_COLUMNS = {
    "pair": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "axis": "str",
    "density": "float64",
    "ratio": "object",
    "dispersion": "float64",
    **{f"{null}_{name}": "float64" for null in NULLS for name in SUMMARY},
    "draws": "int64",
}


@dataclass(frozen=True)
class PairTensors:
    """A pair whose tensors are counted and measured one by one; parameters are those of `measure_pair`."""

    base: Checkpoint
    tuned: Checkpoint
    name: str
    draws: int = 0
    seed: int = 0
    axes: bool = True

    tables = {"tensor": TENSOR_COLUMNS, "axis": AXIS_COLUMNS, "tensor_sweep": TENSOR_SWEEP_COLUMNS}

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
        pair = self.loaded(tensor)
        facts = facts_of(self.aligned[tensor], self.name)
        if pair is None:
            return {"tensor": [facts], "axis": [], "tensor_sweep": []}
        found = self.rows_of(pair, facts)
        return found | {"tensor_sweep": _coarse_rows(pair, found["tensor"][0])}

    def loaded(self, tensor: str) -> TensorPair | None:
        """Both sides of a tensor that can be compared; the others are looked at for their values alone."""
        row = self.aligned[tensor]
        if row.status is Status.compared:
            return load_pair(self.base, self.tuned, tensor)
        _check_sides(self.base, self.tuned, row)
        return None

    def rows_of(self, pair: TensorPair, facts: dict) -> Rows:
        """Rows of a tensor that is loaded."""
        matrix = self.axes and pair.base.dim() == 2 and facts["layer"] is not None and pair.base.numel() > 0
        axis = _axis_rows(pair, facts, self.draws, self.seed) if matrix else []
        return {"tensor": [facts | _numbers(pair, self.name, self.seed)], "axis": axis}


def measure_pair(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    name: str,
    draws: int = 0,
    seed: int = 0,
    axes: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure every tensor of a pair, one at a time.

    Parameters
    ----------
    name : the pair's name, in the column `pair`.
    draws : masks per null and matrix in the axis table; 0 leaves the nulls' columns there empty.
    seed : of the nulls.
    axes : whether the axis table is measured at all.

    Raises
    ------
    PairError, CheckpointError : the checkpoints cannot be compared.
    """
    return measure_all(PairTensors(base, tuned, name, draws, seed, axes))


def write_masks(base: Checkpoint, tuned: Checkpoint, path: Path) -> None:
    """Write the update mask of every compared tensor, packed eight entries a byte, as safetensors.

    Unpack with `threegates.geometry.masks.unpack`; the shapes are in the file's metadata under ``shapes``.
    """
    masks: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for row in align(base, tuned):
        if row.status is Status.compared:
            pair = load_pair(base, tuned, row.name)
            masks[row.name] = pack(update_mask(pair.base, pair.tuned))
            shapes[row.name] = list(pair.base.shape)
    with atomic_path(path) as temporary:
        save_file(masks, temporary, metadata={"shapes": json.dumps(shapes, sort_keys=True)})


def sides(row: AlignedTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of both sides, that of the other one where a side lacks the tensor."""
    shape = row.shape_base if row.shape_base is not None else row.shape_tuned
    assert shape is not None
    return shape, row.shape_tuned if row.shape_tuned is not None else shape


def matrices(rows: list[AlignedTensor], of_layer: int | None = None) -> Iterator[str]:
    """Names of the compared matrices that lie in a block (in that block, if one is named)."""
    for row in rows:
        number = layer(row.name)
        two = row.status is Status.compared and len(sides(row)[0]) == 2
        if two and number is not None and of_layer in (None, number):
            yield row.name


def axis_facts(mask: Tensor, axis: str) -> tuple[Tensor, float]:
    """Row or column ratios of a mask, and their dispersion."""
    ratio = row_ratio(mask) if axis == "row" else column_ratio(mask)
    return ratio, ratio_dispersion(ratio, mask.shape[1 if axis == "row" else 0])


def _check_sides(base: Checkpoint, tuned: Checkpoint, row: AlignedTensor) -> None:
    """Refuse values that are not finite in a tensor that is only reported, as in one that is compared."""
    for checkpoint, side, shape in ((base, "base", row.shape_base), (tuned, "tuned", row.shape_tuned)):
        if shape is not None:
            load_finite(checkpoint, row.name, side)


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


def _numbers(pair: TensorPair, name: str, seed: int) -> dict:
    counts = count_changes(pair.base, pair.tuned)
    before, after = as_stored(pair)
    changed_stored = int((before != after).count_nonzero())
    scale = noise_scale(pair, noise_generator(seed, "scale", name, pair.name))
    noise, noise_sd = noise_sparsity(pair.base, scale)
    return {
        "changed": counts.changed,
        "sparsity": counts.sparsity,
        "changed_stored": changed_stored,
        "sparsity_fp32": 1 - changed_stored / counts.size if counts.size else float("nan"),
        "norm_base": frobenius(pair.base),
        "norm_delta": frobenius(after, before),
        "norm_delta_bf16": update_norm(pair),
        "storage_norm_scale": scale,
        "sparsity_storage_norm": noise,
        "sparsity_storage_norm_sd": noise_sd,
    }


def _coarse_rows(pair: TensorPair, row: dict) -> list[dict]:
    """The tensor's row at coarser tolerances; what float32 shows is the same at all of them."""
    kept = {name: row[name] for name in TENSOR_SWEEP_COLUMNS if name in row}
    rows = []
    for eta in COARSE_ETAS:
        changed = int(update_mask(pair.base, pair.tuned, eta).count_nonzero())
        noise, _ = noise_sparsity(pair.base, row["storage_norm_scale"], eta)
        sparsity = 1 - changed / row["size"] if row["size"] else float("nan")
        rows.append({**kept, "eta": eta, "changed": changed, "sparsity": sparsity})
        rows[-1]["sparsity_storage_norm"] = noise
    return rows


def as_stored(pair: TensorPair) -> tuple[Tensor, Tensor]:
    """Both sides as stored, in the first of fp32 and fp64 that holds them exactly."""
    wide = torch.float64 in (pair.base_stored.dtype, pair.tuned_stored.dtype)
    dtype = torch.float64 if wide else torch.float32
    return pair.base_stored.to(dtype), pair.tuned_stored.to(dtype)


def _axis_rows(pair: TensorPair, facts: dict, draws: int, seed: int) -> list[dict]:
    observed = observe(facts["pair"], pair, seed)
    rows = {axis: axis_row(facts, axis, observed.mask, draws) for axis in ("row", "column")}
    for kind in NULLS if draws else ():
        following = null_stream(kind, observed, seed)
        drawn = [{axis: axis_facts(mask, axis)[1] for axis in rows} for mask in _take(following, draws)]
        for axis, row in rows.items():
            row |= null_columns(kind, row["dispersion"], [draw[axis] for draw in drawn])
    return list(rows.values())


def _take(following: Callable[[], Tensor], number: int) -> Iterator[Tensor]:
    for _ in range(number):
        yield following()


def axis_row(facts: dict, axis: str, mask: Tensor, draws: int) -> dict:
    """The observed half of a row of the axis table."""
    ratio, dispersion = axis_facts(mask, axis)
    keys = {name: facts[name] for name in ("pair", "tensor", "role", "layer")}
    numbers = {"density": float(ratio.mean()), "ratio": ratio.tolist(), "dispersion": dispersion}
    return {**keys, "axis": axis, **numbers, "draws": draws}
