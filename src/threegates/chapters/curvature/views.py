"""Tidy frames of the chapter on curvature: what is drawn, computed from its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from threegates.chapters.curvature.estimates import (
    DIVIDED,
    NEUTRAL,
    RATIOS,
    of_directions,
    run_curvature,
    sft_over_rl,
)
from threegates.estimates.intervals import Estimate
from threegates.estimates.rows import rl_runs, sft_runs
from threegates.figures.names import method_name, method_order
from threegates.measures.curvature import NOISE, PARTS

#: Directions in the order of the figure, with their names on the page.
DIRECTIONS: dict[str, str] = {
    "update": "ΔW",
    "principal": "ΔW, principal block",
    "off_principal": "ΔW, off the block",
    "principal_weights": "ΔW, principal weights",
    "other_weights": "ΔW, other weights",
    "noise": "noise of equal norm",
    "masked_noise": "noise on ΔW's mask",
    "block_noise": "noise, principal block",
    "weights_noise": "noise, principal weights",
}
FUNCTIONS: dict[str, str] = {
    "loss": "Hessian of the loss",
    "fisher": "Fisher matrix",
    "reward": "Hessian of RL's objective",
}
#: What each ratio that is judged divides, by its estimate's name.
JUDGED: dict[str, str] = {
    "curvature_noise_over_rl": "noise / RL's ΔW",
    "curvature_masked_noise_over_rl": "noise on RL's mask / RL's ΔW",
    "steepness_principal_over_noise": "noise: principal block / anywhere",
    "steepness_principal_weights_over_others": "noise: principal weights / others",
}
#: What stands beside and is judged by no rule: updates that differ in more than they are compared in.
BESIDE: dict[str, Callable[..., Estimate]] = {
    "SFT's ΔW at its own rate / RL's ΔW": sft_over_rl,
    "RL's ΔW: principal block / rest": partial(of_directions, "principal", "off_principal"),
    "RL's ΔW: principal weights / others": partial(of_directions, "principal_weights", "other_weights"),
}
assert set(DIRECTIONS) == {*PARTS, *NOISE}


def curvature_view(curvature: pd.DataFrame) -> pd.DataFrame:
    """One row a run, function and direction: means over batches and draws, with names for the page.

    Columns: function, method, direction, name (of the direction), seed, pair, curvature (per unit of squared
    norm), spread (standard deviation over batches), share (of ‖ΔW‖²).
    """
    keys = ["function", "algorithm", "learning_rate", "pair", "seed", "direction"]
    found = curvature.groupby(keys, sort=False, dropna=False)[["curvature", "share"]].mean()
    spread = curvature.groupby(keys, sort=False, dropna=False)["curvature"].std()
    rows = found.assign(spread=spread).reset_index()
    rows = rows.assign(
        method=rows["algorithm"].map(method_name),
        name=rows["direction"].map(DIRECTIONS),
        order=method_order(rows),
    )
    place = rows["direction"].map({name: number for number, name in enumerate(DIRECTIONS)})
    rows = rows.assign(place=place).sort_values(["order", "place", "seed"], kind="stable")
    columns = ["function", "method", "direction", "name", "seed", "pair", "curvature", "spread", "share"]
    return rows[columns].reset_index(drop=True)


def ratio_view(curvature: pd.DataFrame, steepness: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The ratios that are judged and those beside them, of the Hessian, and the same of the Fisher matrix.

    Columns: function, name, judged, value, low, high, n, unit (what the interval is over), reason (why there
    is none).
    """
    rows = []
    for function in ("loss", "fisher"):
        own = {JUDGED[name]: compute(curvature, confidence, function) for name, compute in RATIOS.items()}
        noise = {JUDGED[name]: compute(steepness, confidence, function) for name, compute in NEUTRAL.items()}
        beside = {name: compute(curvature, confidence, function) for name, compute in BESIDE.items()}
        for name, found in (own | noise | beside).items():
            numbers = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
            facts = {"function": FUNCTIONS[function], "name": name, "judged": name not in BESIDE}
            rows.append({**facts, **numbers, "unit": found.unit, "reason": found.reason})
    return pd.DataFrame(rows)


def batch_view(steepness: pd.DataFrame) -> pd.DataFrame:
    """The ratios of neutral noise on each batch alone: of means over draws, NaN where one is not above zero.

    Columns: function, name, batch, value.
    """
    rows = []
    means = steepness.groupby(["function", "batch", "direction"])["curvature"].mean().unstack("direction")
    for row in means.where(means > 0).reset_index().to_dict("records"):
        for name, (top, bottom) in DIVIDED.items():
            facts = {"function": FUNCTIONS[row["function"]], "name": JUDGED[name], "batch": row["batch"]}
            rows.append({**facts, "value": row[top] / row[bottom]})
    return pd.DataFrame(rows, columns=["function", "name", "batch", "value"])


def summary_view(curvature: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: one row a method and direction, a column a function, and the share of ‖ΔW‖²."""
    view = curvature_view(curvature)
    means = view.pivot_table(
        index=["method", "name"], columns="function", values="curvature", aggfunc="mean", sort=False
    )
    shares = view.groupby(["method", "name"], sort=False)["share"].mean()
    named = means.reindex(columns=[name for name in FUNCTIONS if name in means]).rename(columns=FUNCTIONS)
    return (
        named.assign(**{"share of ‖ΔW‖²": shares})
        .reset_index()
        .rename(columns={"method": "of", "name": "direction"})
    )


def along_rl(curvature: pd.DataFrame) -> Mapping[str, float]:
    """Of RL, for the prose: means along ΔW and along noise, and the geometric mean of ΔW over noise.

    `times` is NaN where a curvature of a run is not above zero: of the others alone it would say too much.
    """
    rows = run_curvature(curvature)
    rl = rows[rows["method"] == "rl"].pivot_table(index="pair", columns="direction", values="curvature")
    positive = len(rl) > 0 and bool((rl[["noise", "update"]] > 0).all(axis=None))
    times = float(np.exp(np.log(rl["update"] / rl["noise"]).mean())) if positive else np.nan
    return {"update": float(rl["update"].mean()), "noise": float(rl["noise"].mean()), "times": times}


def block_shares(curvature: pd.DataFrame) -> Mapping[str, float]:
    """Share of squared norm in the principal block, of RL's updates and of noise: means over runs."""
    rows = curvature[(curvature["method"] == "rl") & (curvature["function"] == "loss")]
    means = rows.groupby("direction")["share"].mean()
    return {"update": float(means["principal"]), "noise": float(means["block_noise"])}


def block_curvature(curvature: pd.DataFrame) -> float:
    """Share of the curvature along RL's updates that their part in the principal block gives by itself.

    pᵀHp / uᵀHu for the update u and its part p in the block, of the loss: means over batches, then over runs.
    Cross terms of both parts are not in it.
    """
    rows = curvature[(curvature["method"] == "rl") & (curvature["function"] == "loss")]
    along = (
        rows.assign(whole=rows["curvature"] * rows["share"]).groupby(["pair", "direction"])["whole"].mean()
    )
    wide = along.unstack("direction")
    return float((wide["principal"] / wide["update"]).mean())


def lengths(curvature: pd.DataFrame) -> Mapping[str, Mapping[str, float]]:
    """How far the updates that are compared lie from the base, of `rl` and `sft`: means over runs.

    norm, ‖ΔW‖ over the matrices of the blocks, and learning_rate; NaN where there are no such runs.
    """
    own = curvature[(curvature["function"] == "loss") & (curvature["direction"] == "update")]
    groups = {"rl": rl_runs(own), "sft": sft_runs(own)}
    columns = ("norm", "learning_rate")
    return {name: {one: float(rows[one].mean()) for one in columns} for name, rows in groups.items()}
