"""Estimates of what training under fixed masks learns."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.accuracy import (
    HEADLINE_SHARE,
    best_at_an_edge,
    final_accuracy,
    paired_gap,
    told_of_edges,
)
from threegates.estimates.intervals import Estimate, missing
from threegates.estimates.rows import Estimator, Tables, with_labels


def under_masks(rows: pd.DataFrame, share: str | None = HEADLINE_SHARE) -> pd.DataFrame:
    """Rows of the RL runs that train under a mask, at one α of M_princ or, with None, at every one."""
    rows = with_labels(rows, "mask", "share")
    known = rows["mask"].notna() & (rows["method"] == "rl")
    return rows[known & (True if share is None else rows["share"] == share)]


def best_accuracy(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Best pass@1 over the grid of learning rates: one row a seed, one column a mask of the headline."""
    runs = under_masks(final_accuracy(evaluation))
    return runs.pivot_table(index="seed", columns="mask", values="pass_at_1", aggfunc="max")


def kl_ratios(log: pd.DataFrame) -> pd.DataFrame:
    """log KL(arm)/KL(dense) at every evaluation step: seed, rate, step, mask, `log_ratio`.

    KL is the log's token KL to the base, in nats. Each run stands beside the dense run of its own seed and
    learning rate; the ratio is missing where that has none, or where a KL is zero.
    """
    rows = under_masks(log)
    rows = rows[rows["pass_at_1"].notna()]
    wide = rows.assign(kl=np.log(rows["kl"].where(rows["kl"] > 0))).pivot_table(
        index=["seed", "rate", "step"], columns="mask", values="kl"
    )
    dense = wide["dense"] if "dense" in wide else pd.Series(np.nan, index=wide.index)
    found = wide.sub(dense, axis=0).melt(ignore_index=False, value_name="log_ratio").reset_index()
    return found.dropna(subset="log_ratio")


def kl_distances(log: pd.DataFrame) -> pd.DataFrame:
    """Mean |log KL(arm)/KL(dense)| over steps, then over rates: one row a seed, one column a mask.

    **Source** this study's measure of Zhu et al. (2025), Fig. 9.
    """
    ratios = kl_ratios(log)
    distance = ratios.assign(distance=ratios["log_ratio"].abs())
    of_runs = distance.groupby(["seed", "rate", "mask"])["distance"].mean()
    return of_runs.groupby(["seed", "mask"]).mean().unstack("mask")


def _gap(plus: str, minus: str, tables: Tables, confidence: float) -> Estimate:
    evaluation = tables.table("evaluation")
    gap = paired_gap(best_accuracy(evaluation), plus, minus, "under the mask", confidence)
    runs = under_masks(final_accuracy(evaluation))
    edges = best_at_an_edge(runs[runs["mask"].isin([plus, minus])], ["mask"])
    return (
        missing(told_of_edges(edges, runs["learning_rate"].nunique()), "seeds")
        if edges and gap.has_interval
        else gap
    )


def _kl_gap(plus: str, minus: str, tables: Tables, confidence: float) -> Estimate:
    return paired_gap(kl_distances(tables.table("log")), plus, minus, "under the mask", confidence)


ESTIMATES: dict[str, Estimator] = {
    "accuracy_dense_minus_principal": partial(_gap, "dense", "principal"),
    "accuracy_random_minus_principal": partial(_gap, "random-half", "principal"),
    "accuracy_safe_minus_dense": partial(_gap, "safe", "dense"),
    "accuracy_low_minus_dense": partial(_gap, "low", "dense"),
    "accuracy_off_minus_principal": partial(_gap, "off-principal", "principal"),
    "accuracy_safe_minus_random": partial(_gap, "safe", "random"),
    "kl_distance_principal_minus_safe": partial(_kl_gap, "principal", "safe"),
    "kl_distance_random_minus_safe": partial(_kl_gap, "random", "safe"),
}
