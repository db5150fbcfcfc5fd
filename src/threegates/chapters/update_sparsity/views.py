"""Tables for the figures of the chapter on sparsity."""

from __future__ import annotations

import pandas as pd

from threegates.estimates.intervals import t_estimate
from threegates.figures.names import group_label, method_name, method_order
from threegates.measures.whole_models import pair_sparsity


def sparsity_view(tensor: pd.DataFrame) -> pd.DataFrame:
    """Whole-model sparsities, one row a pair, with the label of method and learning rate."""
    pairs = pair_sparsity(tensor)
    names = pairs["algorithm"].map(method_name)
    labels = [group_label(*facts) for facts in zip(names, pairs["learning_rate"], pairs["pair"], strict=True)]
    view = pairs.assign(method=names, label=labels, order=method_order(pairs))
    return view.sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)


def sparsity_summary(view: pd.DataFrame) -> pd.DataFrame:
    """Mean sparsity of each method and rate with its t interval over seeds: one row a label."""
    rows = []
    for label, group in view.groupby("label", sort=False):
        found = t_estimate(group["sparsity"], "seeds", 0.95)
        rows.append(
            {
                "method": label,
                "seeds": found.n,
                "bf16": found.value,
                "low": found.low,
                "high": found.high,
                "linear layers": group["linear_sparsity"].mean(),
                "fp32": group["sparsity_fp32"].mean(),
                "noise of equal norm": group["sparsity_storage_norm"].mean(),
            }
        )
    return pd.DataFrame(rows)


def training_view(log: pd.DataFrame) -> pd.DataFrame:
    """What each method's runs did: updates, held-out pass@1 first and last, KL and ‖ΔW‖ at the end.

    Means over seeds of the runs in the log; one row a method and learning rate.
    """
    rows = log[log["algorithm"].notna()].sort_values(["run", "step"])
    runs = rows.groupby("run", sort=False).agg(
        algorithm=("algorithm", "first"),
        rate=("learning_rate", "first"),
        steps=("step", "last"),
        updates=("updates", "last"),
        first=("pass_at_1", "first"),
        last=("pass_at_1", "last"),
        kl=("kl", "last"),
        length=("length", "last"),
        delta_norm=("delta_norm", "last"),
    )
    means = runs.groupby(["algorithm", "rate"], sort=False).mean().reset_index()
    return means.assign(algorithm=means["algorithm"].map(method_name)).rename(
        columns={
            "algorithm": "method",
            "rate": "learning rate",
            "first": "pass@1, first",
            "last": "pass@1, last",
            "kl": "KL to base",
            "delta_norm": "‖ΔW‖",
        }
    )
