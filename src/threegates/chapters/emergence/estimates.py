"""What stripes do over training, as estimates."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.intervals import Estimate, exponential, missing, t_estimate
from threegates.estimates.rows import STRIPES, Estimator, Tables, nearest_to_third, over_seeds


def _emergence(null: str | None, tables: Tables, confidence: float) -> Estimate:
    rows = tables.table("emergence")
    if rows.empty:
        return missing("no RL run with checkpoints along its training")
    along = np.where(rows["role"] == "o", "column", "row")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(STRIPES) & (rows["axis"] == along)]
    rows = pd.concat([nearest_to_third(run) for _, run in rows.groupby("run")]) if len(rows) else rows
    excess = rows["spearman_with_final"] - (rows[f"{null}_mean"] if null else 0.0)
    means, unit = over_seeds(excess.groupby(rows["run"]).mean(), rows, "run")
    return t_estimate(means, unit, confidence)


def _deepening(tables: Tables, confidence: float) -> Estimate:
    """Log ratio of dispersion at the end to that at a third of training, geometric mean over matrices."""
    rows = tables.table("emergence")
    if rows.empty:
        return missing("no RL run with checkpoints along its training")
    along = np.where(rows["role"] == "o", "column", "row")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(STRIPES) & (rows["axis"] == along)]
    growth = pd.Series({run: _growth(of_run) for run, of_run in rows.groupby("run")}, dtype=float)
    means, unit = over_seeds(growth, rows, "run")
    return exponential(t_estimate(means, unit, confidence))


def _growth(run: pd.DataFrame) -> float:
    ends = (run[run["step"] == run["step"].max()], nearest_to_third(run))
    late, early = (rows.set_index(["tensor", "axis"])["dispersion"] for rows in ends)
    return float(np.log(late / early).mean())


ESTIMATES: dict[str, Estimator] = {
    "emergence_correlation": partial(_emergence, None),
    "emergence_excess_storage_path": partial(_emergence, "storage_path"),
    "stripe_deepening": _deepening,
}
