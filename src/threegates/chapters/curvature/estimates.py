"""Estimates of how steep the loss is along updates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.intervals import Estimate, exponential, missing, noted, t_estimate
from threegates.estimates.rows import Estimator, Tables, rl_runs, sft_runs

#: The function whose Hessian the claims are about.
JUDGED = "loss"


def run_curvature(curvature: pd.DataFrame, function: str = JUDGED) -> pd.DataFrame:
    """Curvature of one function along each direction of each run, means over batches and draws.

    Columns: seed, algorithm, pair, rate, method, direction, curvature.
    """
    rows = curvature[curvature["function"] == function]
    keys = ["seed", "algorithm", "pair", "rate", "method", "direction"]
    return rows.groupby(keys, sort=False)["curvature"].mean().reset_index()


def over_runs(rows: pd.DataFrame, direction: str) -> pd.Series:
    """Per seed, the geometric mean over runs; their mean where one of them is not above zero."""
    values = rows[rows["direction"] == direction].groupby("seed")["curvature"]
    return values.agg(lambda of: np.exp(np.log(of).mean()) if (of > 0).all() else of.mean())


def ratio(top: pd.Series, bottom: pd.Series, confidence: float) -> Estimate:
    """Geometric mean over seeds of top over bottom; their mean where a curvature on top is not positive.

    Seeds whose bottom is not positive have no ratio: no statement about steepness compares with them. Where
    either happens, the estimate's reason says so.
    """
    found = (top / bottom.where(bottom > 0)).dropna()
    if found.empty:
        return missing("no seed with a positive curvature to compare with", "seeds")
    lost = len(top.index.intersection(bottom.index)) - len(found)
    told = [f"{lost} seed{'s' * (lost != 1)} without a positive curvature to compare with"] * (lost > 0)
    if (found > 0).all():
        estimate = exponential(t_estimate(np.log(found), "seeds", confidence))
    else:
        estimate = t_estimate(found, "seeds", confidence)
        told.append("an arithmetic mean, for a curvature above the line is not positive")
    return noted(estimate, *told)


def of_directions(
    top: str, bottom: str, curvature: pd.DataFrame, confidence: float, function: str = JUDGED
) -> Estimate:
    """Of RL, the curvature of a function along one direction over that along another."""
    rows = rl_runs(run_curvature(curvature, function))
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    return ratio(over_runs(rows, top), over_runs(rows, bottom), confidence)


def sft_over_rl(curvature: pd.DataFrame, confidence: float, function: str = JUDGED) -> Estimate:
    """The curvature of a function along SFT's updates over that along RL's."""
    rows = run_curvature(curvature, function)
    rl, sft = rl_runs(rows), sft_runs(rows)
    if rl.empty or sft.empty:
        absent = "RL at the mask learning rate" if rl.empty else "SFT at its own rate"
        return missing(f"no runs of {absent}", "seeds")
    return ratio(over_runs(sft, "update"), over_runs(rl, "update"), confidence)


#: What computes each estimate from the chapter's table, at a confidence and of a function.
RATIOS: dict[str, Callable[..., Estimate]] = {
    "curvature_noise_over_rl": partial(of_directions, "noise", "update"),
    "curvature_masked_noise_over_rl": partial(of_directions, "masked_noise", "update"),
    "curvature_sft_over_rl": sft_over_rl,
    "curvature_principal_over_rest": partial(of_directions, "principal", "off_principal"),
    "curvature_principal_weights_over_rest": partial(of_directions, "principal_weights", "other_weights"),
}


def _judged(compute: Callable[..., Estimate], tables: Tables, confidence: float) -> Estimate:
    return compute(tables.table("curvature"), confidence)


ESTIMATES: dict[str, Estimator] = {name: partial(_judged, compute) for name, compute in RATIOS.items()}
