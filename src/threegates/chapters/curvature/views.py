"""Tidy frames of the chapter on curvature: what is drawn, computed from its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd

from threegates.chapters.curvature.estimates import RATIOS as JUDGED_RATIOS
from threegates.chapters.curvature.estimates import of_directions, run_curvature
from threegates.estimates.intervals import Estimate
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
#: What each ratio divides, and what computes it: first what claims and controls are judged by, then the same
#: of noise, which knows nothing of training, so that it tells what the base's geometry alone does.
RATIOS: dict[str, Callable[..., Estimate]] = {
    "noise / RL's ΔW": JUDGED_RATIOS["curvature_noise_over_rl"],
    "noise on RL's mask / RL's ΔW": JUDGED_RATIOS["curvature_masked_noise_over_rl"],
    "SFT's ΔW / RL's ΔW": JUDGED_RATIOS["curvature_sft_over_rl"],
    "ΔW: principal block / rest": JUDGED_RATIOS["curvature_principal_over_rest"],
    "ΔW: principal weights / others": JUDGED_RATIOS["curvature_principal_weights_over_rest"],
    "noise: principal block / all": partial(of_directions, "block_noise", "noise"),
    "noise: principal weights / all": partial(of_directions, "weights_noise", "noise"),
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


def ratio_view(curvature: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The ratios that are judged, of the Hessian, and the same of the Fisher matrix.

    Columns: function, name, value, low, high, n.
    """
    rows = []
    for function in ("loss", "fisher"):
        for name, compute in RATIOS.items():
            found = compute(curvature, confidence, function)
            numbers = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
            rows.append({"function": FUNCTIONS[function], "name": name, **numbers})
    return pd.DataFrame(rows)


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


def steepness(curvature: pd.DataFrame) -> Mapping[str, float]:
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
