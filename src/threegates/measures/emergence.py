"""How early a run's rows and columns take their final pattern.

One table, ``emergence``: for every matrix, axis and saved step the ratios, their rank correlation with those
at the run's end, and the same correlation on coordinate-blind Gaussian walks seen through storage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.paths import storage_path
from threegates.geometry.precision import ETA
from threegates.measures.agreement import AXES, rank_correlations
from threegates.measures.by_tensor import typed
from threegates.measures.changes import axis_facts, matrices
from threegates.measures.draws import COARSE_ETAS, SUMMARY, null_columns

EMERGENCE_COLUMNS = {
    "run": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "axis": "str",
    "step": "int64",
    "updates": "Int64",
    "density": "float64",
    "ratio": "object",
    "dispersion": "float64",
    "cosine_with_final": "float64",
    "walk_time": "float64",
    "spearman_with_final": "float64",
    **{f"storage_path_{name}": "float64" for name in SUMMARY},
    "draws": "int64",
}


#: The same at tolerances coarser than the paper's, beside fewer walks.
EMERGENCE_SWEEP_COLUMNS = {**EMERGENCE_COLUMNS, "eta": "float64"}
SWEEP_DRAWS = 9


@dataclass(frozen=True)
class Snapshot:
    """A run's checkpoint after some step; `updates` counts optimizer updates where it is known."""

    step: int
    updates: int | None
    checkpoint: Checkpoint


def measure_emergence(
    base: Checkpoint, snapshots: Sequence[Snapshot], *, run: str, draws: int, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Follow the row and column ratios of one run from its first saved step to its last.

    Returns
    -------
    tables ``emergence``, and ``emergence_sweep`` at coarser tolerances.

    Raises
    ------
    PairError : fewer than two snapshots, two of one step, or one that cannot be compared with the base.
    """
    ordered = sorted(snapshots, key=lambda one: one.step)
    steps = [one.step for one in ordered]
    if len(ordered) < 2 or len(set(steps)) < len(steps) or steps[0] <= 0:
        raise PairError(
            "emergence needs checkpoints along a run",
            where=run,
            expected="two steps or more, above 0",
            found=steps,
        )
    names = sorted(set.intersection(*(set(matrices(align(base, one.checkpoint))) for one in ordered)))
    follow = partial(_follow, base, ordered, run=run, seed=seed)
    rows = [row for name in names for row in follow(name, draws=draws)]
    coarse = [
        row | {"eta": eta}
        for name in names
        for eta in COARSE_ETAS
        for row in follow(name, draws=min(draws, SWEEP_DRAWS), eta=eta)
    ]
    return {
        "emergence": typed(rows, EMERGENCE_COLUMNS),
        "emergence_sweep": typed(coarse, EMERGENCE_SWEEP_COLUMNS),
    }


def walk_times(steps: Sequence[int], cosines: Sequence[float]) -> list[float]:
    """Times at which a Gaussian walk is observed, the last being 1.

    A Brownian walk seen at time t has cosine √t with its end at time 1. The null takes, at each step, the
    later of the step's share of training and the squared cosine of the run's own update with its final one:
    it keeps its direction at least as well as a free walk and as the run itself, so that a run which merely
    persists does not look like one that is drawn to certain rows.
    """
    share = np.asarray(steps, dtype=float) / steps[-1]
    persistence = np.square(np.clip(np.nan_to_num(np.asarray(cosines, dtype=float)), 0.0, 1.0))
    times = np.maximum.accumulate(np.maximum(share, persistence))
    # A millionth of the shares is mixed in, which keeps equal times apart: a walk is observed in order.
    return [float(time) for time in (1 - 1e-6) * times + 1e-6 * share]


def _follow(
    base: Checkpoint,
    snapshots: Sequence[Snapshot],
    name: str,
    *,
    run: str,
    draws: int,
    seed: int,
    eta: float = ETA,
) -> list[dict]:
    pairs = [load_pair(base, one.checkpoint, name) for one in snapshots]
    masks = [update_mask(pair.base, pair.tuned, eta) for pair in pairs]
    deltas = [(pair.tuned_stored.double() - pair.base_stored.double()).flatten() for pair in pairs]
    cosines = [_cosine(delta, deltas[-1]) for delta in deltas]
    times = walk_times([one.step for one in snapshots], cosines)
    source = noise_generator(seed, "storage_path", run, name)
    null = _walks(pairs[0].base, masks, times, draws, source, eta)
    facts = {
        "run": run,
        "tensor": name,
        "role": role(name, masks[0].shape),
        "layer": layer(name),
        "draws": draws,
    }
    rows = []
    for axis in AXES:
        found = _with_final(masks, axis)
        for number, one in enumerate(snapshots):
            row = {**facts, "axis": axis, "step": one.step, "updates": one.updates}
            row |= _numbers(masks[number], axis, cosines[number], times[number], found[number])
            rows.append(
                row | null_columns("storage_path", found[number], [walk[axis][number] for walk in null])
            )
    return rows


def _numbers(mask: Tensor, axis: str, cosine: float, time: float, found: float) -> dict:
    ratio, dispersion = axis_facts(mask, axis)
    return {
        "density": float(ratio.mean()),
        "ratio": ratio.tolist(),
        "dispersion": dispersion,
        "cosine_with_final": cosine,
        "walk_time": time,
        "spearman_with_final": found,
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float(a @ b) / norms if norms else math.nan


def _with_final(masks: Sequence[Tensor], axis: str) -> list[float]:
    ratios = torch.stack([axis_facts(mask, axis)[0] for mask in masks]).cpu().numpy()
    return [float(value) for value in rank_correlations(ratios)[:, -1]]


def _walks(
    base: Tensor,
    masks: Sequence[Tensor],
    times: Sequence[float],
    draws: int,
    generator: torch.Generator,
    eta: float,
) -> list[dict[str, list[float]]]:
    counts = [int(mask.count_nonzero()) for mask in masks]
    walks = []
    for _ in range(draws):
        path = storage_path(base.cpu(), counts, times, generator, eta)
        walks.append({axis: _with_final(path, axis) for axis in AXES})
    return walks
