"""Whether the masks of several runs from one base agree, and how striped each of them is.

Four tables. ``axis``: as in `threegates.measures.changes`, with nulls. ``agreement``: one row for every two
runs and matrix. ``rates``: rank correlation of the two runs' row or column ratios. ``map``: consensus maps of
one block, observed and under each null.

Under every null each run's mask is drawn on its own, matched to that run, so that what two runs share there
comes from the base's weights and from storage alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import TensorPair, align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.masks import consensus, expected_jaccard, jaccard_matrix
from threegates.geometry.nulls.null import NullMasks, Observed
from threegates.geometry.stripes import ratio_dispersion
from threegates.measures.by_tensor import typed
from threegates.measures.changes import axis_columns, axis_facts, axis_row, matrices
from threegates.measures.draws import (
    COARSE_ETAS,
    coarsened,
    null_columns,
    null_masks,
    observe,
    summary_columns,
)

AXES = ("row", "column")
_KEYS = {"tensor": "str", "role": "str", "layer": "Int64", "run_a": "str", "run_b": "str"}
_AGREEMENT_COLUMNS = {
    **_KEYS,
    "density_a": "float64",
    "density_b": "float64",
    "jaccard": "float64",
    "bernoulli": "float64",
}
_RATES_COLUMNS = {**_KEYS, "axis": "str", "spearman": "float64"}
MAP_COLUMNS = {
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "kind": "str",
    "runs": "int64",
    "rows": "int64",
    "columns": "int64",
    "block": "int64",
    "consensus": "object",
}
# Of the tables at tolerances coarser than the paper's.
SWEEP_DRAWS = 9
# A map is for the eye: longer sides are averaged over square blocks.
LONGEST_SIDE = 512


def columns_of(nulls: Sequence[NullMasks]) -> dict[str, dict[str, str]]:
    """Every table with its columns and types, among them those of the nulls that it is measured with.

    ``axis_sweep`` and ``agreement_sweep`` are ``axis`` and ``agreement`` at tolerances coarser than the
    paper's, beside fewer draws.
    """
    drawn = {**summary_columns(nulls), "draws": "int64"}
    axis, agreement = axis_columns(nulls), {**_AGREEMENT_COLUMNS, **drawn}
    return {
        "axis": axis,
        "agreement": agreement,
        "rates": {**_RATES_COLUMNS, **drawn},
        "map": MAP_COLUMNS,
        "axis_sweep": {**axis, "eta": "float64"},
        "agreement_sweep": {**agreement, "eta": "float64"},
    }


def measure_agreement(
    base: Checkpoint,
    runs: Mapping[str, Checkpoint],
    *,
    of_layer: int,
    draws: int,
    nulls: Sequence[NullMasks],
    seed: int = 0,
    maps: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure stripes and agreement of the runs in every matrix of one block.

    Parameters
    ----------
    runs : tuned checkpoints by name, all trained from `base`; one run gives stripes but no agreement.
    of_layer : number of the block.
    draws : masks per null, run and matrix.
    nulls : those beside the runs.
    maps : whether the table ``map`` gets this block's consensus maps.

    Raises
    ------
    PairError : a run does not align with the base, holds values that are not finite, or there is no run.
    """
    if not runs:
        raise PairError("agreement needs at least one run")
    names = sorted(set.intersection(*(set(matrices(align(base, run), of_layer)) for run in runs.values())))
    drawn = _Draws(nulls if draws else (), draws, seed)
    parts = [_measure_matrix(base, runs, name, drawn, maps) for name in names]
    columns = columns_of(nulls)
    return {table: typed([row for part in parts for row in part[table]], columns[table]) for table in columns}


def layers(base: Checkpoint) -> list[int]:
    """Numbers of the blocks that have matrices."""
    return sorted({number for name in base.infos if (number := layer(name)) is not None})


def consensus_map(row: pd.Series) -> np.ndarray:
    """The consensus map of one row of the table ``map``, shares in [0, 1]."""
    return np.asarray(row["consensus"], dtype=float).reshape(row["rows"], row["columns"])


@dataclass(frozen=True)
class _Draws:
    """Nulls, how many masks of each are drawn, and the seed of their noise."""

    nulls: Sequence[NullMasks]
    number: int
    seed: int

    def of(self, null: NullMasks, observed: list[Observed]) -> Iterator[list[Tensor]]:
        """Masks of a null, one a run, as often as is asked for."""
        streams = [null_masks(null, one, self.seed) for one in observed]
        for _ in range(self.number):
            yield [next(stream) for stream in streams]


@dataclass
class _Statistics:
    """What is computed of one set of masks, one mask a run."""

    jaccard: np.ndarray
    dispersion: dict[str, list[float]]
    spearman: dict[str, np.ndarray]


def _measure_matrix(
    base: Checkpoint, runs: Mapping[str, Checkpoint], name: str, draws: _Draws, maps: bool
) -> dict[str, list[dict]]:
    pairs = {run: load_pair(base, tuned, name) for run, tuned in runs.items()}
    observed = [observe(run, pair, draws.seed) for run, pair in pairs.items()]
    facts = {"tensor": name, "role": role(name, observed[0].base.shape), "layer": layer(name)}
    found = _statistics([one.mask for one in observed])
    kept = [_map_row(facts, "observed", [one.mask for one in observed])] if maps else []
    drawn: dict[str, list[_Statistics]] = {}
    for null in draws.nulls:
        masks = draws.of(null, observed)
        first = next(masks)
        kept += [_map_row(facts, null.name, first)] if maps else []
        drawn[null.name] = [_statistics(first), *map(_statistics, masks)]
    return {
        "axis": _axis_rows(facts, observed, found, drawn, draws.number),
        "agreement": _agreement_rows(facts, observed, found, drawn, draws.number),
        "rates": _rates_rows(facts, observed, found, drawn, draws.number),
        "map": kept,
        **_coarse_rows(facts, observed, pairs, replace(draws, number=min(draws.number, SWEEP_DRAWS))),
    }


def _coarse_rows(
    facts: dict, observed: list[Observed], pairs: Mapping[str, TensorPair], draws: _Draws
) -> dict[str, list[dict]]:
    """Stripes and agreement at coarser tolerances, each beside nulls at that tolerance."""
    rows: dict[str, list[dict]] = {"axis_sweep": [], "agreement_sweep": []}
    for eta in COARSE_ETAS:
        coarse = [coarsened(one, pairs[one.run].tuned, eta) for one in observed]
        found = _statistics([one.mask for one in coarse])
        drawn = {null.name: [_statistics(masks) for masks in draws.of(null, coarse)] for null in draws.nulls}
        axis = _axis_rows(facts, coarse, found, drawn, draws.number)
        agreement = _agreement_rows(facts, coarse, found, drawn, draws.number)
        rows["axis_sweep"] += [row | {"eta": eta} for row in axis]
        rows["agreement_sweep"] += [row | {"eta": eta} for row in agreement]
    return rows


def _statistics(masks: list[Tensor]) -> _Statistics:
    ratios = {axis: [axis_facts(mask, axis)[0] for mask in masks] for axis in AXES}
    lines = {"row": masks[0].shape[1], "column": masks[0].shape[0]}
    return _Statistics(
        jaccard_matrix(masks).numpy(),
        {axis: [ratio_dispersion(ratio, lines[axis]) for ratio in ratios[axis]] for axis in AXES},
        {axis: rank_correlations(torch.stack(ratios[axis]).cpu().numpy()) for axis in AXES},
    )


def rank_correlations(vectors: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every two rows, tied values sharing their mean rank; NaN where a row is constant.

    **Source** Spearman (1904).
    """
    ranks = rankdata(vectors, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(centred @ centred.T / np.outer(norms, norms), -1.0, 1.0)


def _axis_rows(
    facts: dict,
    observed: list[Observed],
    found: _Statistics,
    null: dict[str, list[_Statistics]],
    draws: int,
) -> list[dict]:
    rows = []
    for number, one in enumerate(observed):
        for axis in AXES:
            row = axis_row({**facts, "pair": one.run}, axis, one.mask, draws)
            for kind, drawn in null.items():
                values = [draw.dispersion[axis][number] for draw in drawn]
                row |= null_columns(kind, found.dispersion[axis][number], values)
            rows.append(row)
    return rows


def _agreement_rows(
    facts: dict,
    observed: list[Observed],
    found: _Statistics,
    null: dict[str, list[_Statistics]],
    draws: int,
) -> list[dict]:
    rows = []
    for i, j in combinations(range(len(observed)), 2):
        density = [observed[k].changed / max(observed[k].mask.numel(), 1) for k in (i, j)]
        row = {**facts, "run_a": observed[i].run, "run_b": observed[j].run, "draws": draws}
        row |= {"density_a": density[0], "density_b": density[1]}
        row |= {"jaccard": found.jaccard[i, j], "bernoulli": expected_jaccard(*density)}
        for kind, drawn in null.items():
            row |= null_columns(kind, row["jaccard"], [draw.jaccard[i, j] for draw in drawn])
        rows.append(row)
    return rows


def _rates_rows(
    facts: dict,
    observed: list[Observed],
    found: _Statistics,
    null: dict[str, list[_Statistics]],
    draws: int,
) -> list[dict]:
    rows = []
    for i, j in combinations(range(len(observed)), 2):
        for axis in AXES:
            row = {**facts, "run_a": observed[i].run, "run_b": observed[j].run, "axis": axis, "draws": draws}
            row["spearman"] = found.spearman[axis][i, j]
            for kind, drawn in null.items():
                row |= null_columns(kind, row["spearman"], [draw.spearman[axis][i, j] for draw in drawn])
            rows.append(row)
    return rows


def _map_row(facts: dict, kind: str, masks: list[Tensor]) -> dict:
    shares = consensus(masks)
    block = -(-max(shares.shape) // LONGEST_SIDE)
    shares = torch.nn.functional.avg_pool2d(shares[None], block, ceil_mode=True)[0] if block > 1 else shares
    shape = {"rows": shares.shape[0], "columns": shares.shape[1], "block": block, "runs": len(masks)}
    return {**facts, "kind": kind, **shape, "consensus": shares.flatten().tolist()}
