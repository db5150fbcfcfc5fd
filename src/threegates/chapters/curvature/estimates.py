"""Estimates of how steep the loss is along updates, and along noise at their base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def of_noise(
    top: str, bottom: str, steepness: pd.DataFrame, confidence: float, function: str = JUDGED
) -> Estimate:
    """Of neutral noise at the base, the curvature along one direction over another's of the same draw.

    Per draw, means over batches are divided; geometric mean over draws, with Student's interval of the
    logarithms. Its units are draws of noise: it is about this base on these batches, and says nothing of how
    another base, or other data, would have it. Where a draw meets a curvature that is not above zero there
    is no estimate: its ratio would not say which of two directions is steeper, and the others are not all.
    """
    rows = steepness[steepness["function"] == function]
    means = rows.pivot_table(index=["base", "draw"], columns="direction", values="curvature")
    if means.empty:
        return missing("no noise was measured at the base", "draws")
    lost = int((means[[top, bottom]] <= 0).any(axis=1).sum())
    if lost:
        told = f"{lost} of {len(means)} draws of noise meet a curvature that is not above zero"
        told += ", so that no ratio says which direction is steeper"
        return replace(missing(told, "draws"), undecided=told)
    return exponential(t_estimate(np.log(means[top] / means[bottom]), "draws", confidence))


#: What computes each estimate from the table of updates, at a confidence and of a function.
RATIOS: dict[str, Callable[..., Estimate]] = {
    "curvature_noise_over_rl": partial(of_directions, "noise", "update"),
    "curvature_masked_noise_over_rl": partial(of_directions, "masked_noise", "update"),
}
#: Which directions of neutral noise each estimate divides.
DIVIDED = {
    "steepness_principal_over_noise": ("block", "noise"),
    "steepness_principal_weights_over_others": ("principal_weights", "other_weights"),
}
#: What computes these from the table of neutral noise.
NEUTRAL: dict[str, Callable[..., Estimate]] = {
    name: partial(of_noise, *directions) for name, directions in DIVIDED.items()
}


def _judged(compute: Callable[..., Estimate], table: str, tables: Tables, confidence: float) -> Estimate:
    return compute(tables.table(table), confidence)


ESTIMATES: dict[str, Estimator] = {
    **{name: partial(_judged, compute, "curvature") for name, compute in RATIOS.items()},
    **{name: partial(_judged, compute, "steepness") for name, compute in NEUTRAL.items()},
}
