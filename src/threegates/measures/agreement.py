"""Whether the masks of several runs from one base agree, and how striped each of them is.

Four tables. ``axis``: as in `threegates.measures.changes`, with nulls. ``agreement``: one row for every two
runs and matrix. ``rates``: rank correlation of the two runs' row or column ratios. ``map``: consensus maps of
one block, observed and under each null.

Under every null each run's mask is drawn on its own, matched to that run, so that what two runs share there
comes from the base's weights and from storage alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
from threegates.geometry.stripes import ratio_dispersion
from threegates.measures.by_tensor import typed
from threegates.measures.changes import AXIS_COLUMNS, axis_facts, axis_row, matrices
from threegates.measures.draws import (
    COARSE_ETAS,
    NULLS,
    SUMMARY,
    ObservedMask,
    coarsened,
    null_columns,
    null_stream,
    observe,
)

AXES = ("row", "column")
_KEYS = {"tensor": "str", "role": "str", "layer": "Int64", "run_a": "str", "run_b": "str"}
_NULL_COLUMNS = {f"{null}_{name}": "float64" for null in NULLS for name in SUMMARY}
AGREEMENT_COLUMNS = {
    **_KEYS,
    "density_a": "float64",
    "density_b": "float64",
    "jaccard": "float64",
    "bernoulli": "float64",
    **_NULL_COLUMNS,
    "draws": "int64",
}
RATES_COLUMNS = {**_KEYS, "axis": "str", "spearman": "float64", **_NULL_COLUMNS, "draws": "int64"}
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
#: The tables ``axis`` and ``agreement`` at tolerances coarser than the paper's, beside fewer draws.
AXIS_SWEEP_COLUMNS = {**AXIS_COLUMNS, "eta": "float64"}
AGREEMENT_SWEEP_COLUMNS = {**AGREEMENT_COLUMNS, "eta": "float64"}
SWEEP_DRAWS = 9
# A map is for the eye: longer sides are averaged over square blocks.
LONGEST_SIDE = 512


def measure_agreement(
    base: Checkpoint,
    runs: Mapping[str, Checkpoint],
    *,
    of_layer: int,
    draws: int,
    seed: int = 0,
    maps: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure stripes and agreement of the runs in every matrix of one block.

    Parameters
    ----------
    runs : tuned checkpoints by name, all trained from `base`; one run gives stripes but no agreement.
    of_layer : number of the block.
    draws : masks per null, run and matrix.
    maps : whether the table ``map`` gets this block's consensus maps.

    Raises
    ------
    PairError : a run does not align with the base, holds values that are not finite, or there is no run.
    """
    if not runs:
        raise PairError("agreement needs at least one run")
    names = sorted(set.intersection(*(set(matrices(align(base, run), of_layer)) for run in runs.values())))
    parts = [_measure_matrix(base, runs, name, draws, seed, maps) for name in names]
    columns = {
        "axis": AXIS_COLUMNS,
        "agreement": AGREEMENT_COLUMNS,
        "rates": RATES_COLUMNS,
        "map": MAP_COLUMNS,
        "axis_sweep": AXIS_SWEEP_COLUMNS,
        "agreement_sweep": AGREEMENT_SWEEP_COLUMNS,
    }
    return {table: typed([row for part in parts for row in part[table]], columns[table]) for table in columns}


def layers(base: Checkpoint) -> list[int]:
    """Numbers of the blocks that have matrices."""
    return sorted({number for name in base.infos if (number := layer(name)) is not None})


def consensus_map(row: pd.Series) -> np.ndarray:
    """The consensus map of one row of the table ``map``, shares in [0, 1]."""
    return np.asarray(row["consensus"], dtype=float).reshape(row["rows"], row["columns"])


@dataclass
class _Statistics:
    """What is computed of one set of masks, one mask a run."""

    jaccard: np.ndarray
    dispersion: dict[str, list[float]]
    spearman: dict[str, np.ndarray]


def _measure_matrix(
    base: Checkpoint, runs: Mapping[str, Checkpoint], name: str, draws: int, seed: int, maps: bool
) -> dict[str, list[dict]]:
    pairs = {run: load_pair(base, tuned, name) for run, tuned in runs.items()}
    observed = [observe(run, pair, seed) for run, pair in pairs.items()]
    facts = {"tensor": name, "role": role(name, observed[0].base.shape), "layer": layer(name)}
    found = _statistics([one.mask for one in observed])
    kept = [_map_row(facts, "observed", [one.mask for one in observed])] if maps else []
    null: dict[str, list[_Statistics]] = {}
    for kind in NULLS if draws else ():
        drawn = _drawn(kind, observed, draws, seed)
        first = next(drawn)
        kept += [_map_row(facts, kind, first)] if maps else []
        null[kind] = [_statistics(first), *map(_statistics, drawn)]
    return {
        "axis": _axis_rows(facts, observed, found, null, draws),
        "agreement": _agreement_rows(facts, observed, found, null, draws),
        "rates": _rates_rows(facts, observed, found, null, draws),
        "map": kept,
        **_coarse_rows(facts, observed, pairs, min(draws, SWEEP_DRAWS), seed),
    }


def _drawn(kind: str, observed: list[ObservedMask], draws: int, seed: int) -> Iterator[list[Tensor]]:
    """Null masks of that kind, one a run, as often as is asked for."""
    streams = [null_stream(kind, one, seed) for one in observed]
    for _ in range(draws):
        yield [following() for following in streams]


def _coarse_rows(
    facts: dict, observed: list[ObservedMask], pairs: Mapping[str, TensorPair], draws: int, seed: int
) -> dict[str, list[dict]]:
    """Stripes and agreement at coarser tolerances, each beside nulls at that tolerance."""
    rows: dict[str, list[dict]] = {"axis_sweep": [], "agreement_sweep": []}
    for eta in COARSE_ETAS:
        coarse = [coarsened(one, pairs[one.run].tuned, eta) for one in observed]
        found = _statistics([one.mask for one in coarse])
        null = {
            kind: [_statistics(masks) for masks in _drawn(kind, coarse, draws, seed)]
            for kind in (NULLS if draws else ())
        }
        axis = _axis_rows(facts, coarse, found, null, draws)
        agreement = _agreement_rows(facts, coarse, found, null, draws)
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
    observed: list[ObservedMask],
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
    observed: list[ObservedMask],
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
    observed: list[ObservedMask],
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
