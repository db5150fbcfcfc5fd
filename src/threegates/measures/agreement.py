"""Whether the masks of several runs from one base agree, and how striped each of them is.

Four tables. ``axis``: row and column ratios of each run. ``agreement``: one row for every two runs and
matrix. ``rates``: rank correlation of the two runs' row or column ratios. All stand beside the laws of nulls;
for ``rates``, counts of rows and columns are drawn, without masks. ``map``: consensus maps of one block,
observed and under each null, a picture there of one mask that is drawn for each run.

Under every null each run's mask is its own, matched to that run, so that what two runs share there comes from
the base's weights and from storage alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
from threegates.geometry.laws.rank_correlation import correlation_law
from threegates.geometry.masks import (
    column_ratio,
    consensus,
    expected_jaccard,
    jaccard_matrix,
    row_ratio,
    update_mask,
)
from threegates.geometry.nulls.null import NullMasks, NullOfLaw
from threegates.measures.by_tensor import typed
from threegates.measures.changes import COARSE_ETAS, matrices, observed_axis
from threegates.measures.norms import update_norm
from threegates.measures.null_laws import MaskBeside, axis_rows, beside, jaccard_law, law_columns
from threegates.measures.tensor_table import axis_columns

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
# A map is for the eye: longer sides are averaged over square blocks.
LONGEST_SIDE = 512


def columns_of(nulls: Sequence[NullMasks]) -> dict[str, dict[str, str]]:
    """Every table with its columns and types, among them those of the nulls that it is measured with.

    ``axis_sweep`` and ``agreement_sweep`` are ``axis`` and ``agreement`` at tolerances coarser than the
    paper's.
    """
    of_nulls = {name: kind for null in nulls for name, kind in law_columns(null.name).items()}
    axis, agreement = axis_columns(nulls), {**_AGREEMENT_COLUMNS, **of_nulls}
    return {
        "axis": axis,
        "agreement": agreement,
        "rates": {**_RATES_COLUMNS, **of_nulls},
        "map": MAP_COLUMNS,
        "axis_sweep": {**axis, "eta": "float64"},
        "agreement_sweep": {**agreement, "eta": "float64"},
    }


def measure_agreement(
    base: Checkpoint,
    runs: Mapping[str, Checkpoint],
    *,
    of_layer: int,
    nulls: Sequence[NullOfLaw],
    seed: int = 0,
    maps: bool = True,
) -> dict[str, pd.DataFrame]:
    """Measure stripes and agreement of the runs in every matrix of one block.

    Parameters
    ----------
    runs : tuned checkpoints by name, all trained from `base`; one run gives stripes but no agreement.
    of_layer : number of the block.
    nulls : those beside the runs.
    seed : of what is drawn.
    maps : whether the table ``map`` gets this block's consensus maps.

    Raises
    ------
    PairError : a run does not align with the base, holds values that are not finite, or there is no run.
    """
    if not runs:
        raise PairError("agreement needs at least one run")
    shared = set.intersection(*(set(matrices(align(base, run), of_layer)) for run in runs.values()))
    names = sorted(name for name in shared if math.prod(base.infos[name].shape))
    parts = [_measure_matrix(base, runs, name, nulls, seed, maps) for name in names]
    columns = columns_of(nulls)
    return {table: typed([row for part in parts for row in part[table]], columns[table]) for table in columns}


def layers(base: Checkpoint) -> list[int]:
    """Numbers of the blocks that have matrices."""
    return sorted({number for name in base.infos if (number := layer(name)) is not None})


def consensus_map(row: pd.Series) -> np.ndarray:
    """The consensus map of one row of the table ``map``, shares in [0, 1]."""
    return np.asarray(row["consensus"], dtype=float).reshape(row["rows"], row["columns"])


def _measure_matrix(
    base: Checkpoint,
    runs: Mapping[str, Checkpoint],
    name: str,
    nulls: Sequence[NullOfLaw],
    seed: int,
    maps: bool,
) -> dict[str, list[dict]]:
    pairs = {run: load_pair(base, tuned, name) for run, tuned in runs.items()}
    observed = [_observed(run, pair, seed) for run, pair in pairs.items()]
    facts = {"tensor": name, "role": role(name, observed[0].base.shape), "layer": layer(name)}
    return {
        "axis": _axis_rows(facts, observed, nulls),
        "agreement": _agreement_rows(facts, observed, nulls),
        "rates": _rates_rows(facts, observed, nulls),
        "map": _map_rows(facts, observed, nulls) if maps else [],
        **_coarse_rows(facts, observed, pairs, nulls),
    }


def _observed(run: str, pair: TensorPair, seed: int) -> MaskBeside:
    mask = update_mask(pair.base, pair.tuned)
    return MaskBeside(run, pair.name, pair.base, mask, (), update_norm(pair), seed)


def _coarse_rows(
    facts: dict, observed: list[MaskBeside], pairs: Mapping[str, TensorPair], nulls: Sequence[NullOfLaw]
) -> dict[str, list[dict]]:
    """Stripes and agreement at coarser tolerances, each beside nulls at that tolerance."""
    rows: dict[str, list[dict]] = {"axis_sweep": [], "agreement_sweep": []}
    for eta in COARSE_ETAS:
        coarse = [one.at(eta, update_mask(one.base, pairs[one.run].tuned, eta)) for one in observed]
        rows["axis_sweep"] += [row | {"eta": eta} for row in _axis_rows(facts, coarse, nulls)]
        rows["agreement_sweep"] += [row | {"eta": eta} for row in _agreement_rows(facts, coarse, nulls)]
    return rows


def rank_correlations(vectors: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every two rows, tied values sharing their mean rank; NaN where a row is constant.

    **Source** Spearman (1904).
    """
    ranks = rankdata(vectors, axis=1)
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(centred @ centred.T / np.outer(norms, norms), -1.0, 1.0)


def _axis_rows(facts: dict, observed: list[MaskBeside], nulls: Sequence[NullOfLaw]) -> list[dict]:
    return [
        row
        for one in observed
        for row in axis_rows(
            [observed_axis({**facts, "pair": one.run}, axis, one.mask) for axis in AXES], one, nulls
        )
    ]


def _agreement_rows(facts: dict, observed: list[MaskBeside], nulls: Sequence[NullOfLaw]) -> list[dict]:
    rows, found = [], jaccard_matrix([one.mask for one in observed]).numpy()
    for i, j in combinations(range(len(observed)), 2):
        both = observed[i], observed[j]
        density = [one.seen.changed / max(one.mask.numel(), 1) for one in both]
        row = {**facts, "run_a": both[0].run, "run_b": both[1].run}
        row |= {"density_a": density[0], "density_b": density[1]}
        row |= {"jaccard": found[i, j], "bernoulli": expected_jaccard(*density)}
        for null in nulls:
            row |= beside(null.name, row["jaccard"], jaccard_law(*both, null), "upper")
        rows.append(row)
    return rows


def _rates_rows(facts: dict, observed: list[MaskBeside], nulls: Sequence[NullOfLaw]) -> list[dict]:
    pairs = list(combinations(range(len(observed)), 2))
    named = {pair: {"run_a": observed[pair[0]].run, "run_b": observed[pair[1]].run} for pair in pairs}
    ratios = [[ratio(one.mask) for one in observed] for ratio in (row_ratio, column_ratio)]
    found = [rank_correlations(torch.stack(one).cpu().numpy()) for one in ratios]
    rows = {
        (pair, axis): {**facts, **named[pair], "axis": AXES[axis], "spearman": found[axis][pair]}
        for pair in pairs
        for axis in (0, 1)
    }
    # One null at a time: ranks of all runs are its largest part.
    for null in nulls if pairs else ():
        ranks = [one.line_ranks(null) for one in observed]
        for ((i, j), axis), row in rows.items():
            # A run whose masks are drawn has fewer draws than one whose counts are.
            number = min(len(ranks[i][axis]), len(ranks[j][axis]))
            law = correlation_law(ranks[i][axis][:number], ranks[j][axis][:number])
            row |= beside(null.name, row["spearman"], law, "upper")
    return list(rows.values())


def _map_rows(facts: dict, observed: list[MaskBeside], nulls: Sequence[NullMasks]) -> list[dict]:
    drawn = {null.name: [next(one.masks(null)) for one in observed] for null in nulls}
    kinds = {"observed": [one.mask for one in observed], **drawn}
    return [_map_row(facts, kind, masks) for kind, masks in kinds.items()]


def _map_row(facts: dict, kind: str, masks: list[Tensor]) -> dict:
    shares = consensus(masks)
    block = -(-max(shares.shape) // LONGEST_SIDE)
    shares = torch.nn.functional.avg_pool2d(shares[None], block, ceil_mode=True)[0] if block > 1 else shares
    shape = {"rows": shares.shape[0], "columns": shares.shape[1], "block": block, "runs": len(masks)}
    return {**facts, "kind": kind, **shape, "consensus": shares.flatten().tolist()}
