"""Tidy frames of the chapter on learning rates: what is drawn, computed from its tables and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.chapters.learning_rate.estimates import (
    at_mask_rate,
    last_evaluations,
    rate_runs,
    with_masters,
)
from threegates.estimates.intervals import t_estimate
from threegates.lab.recipe import LanguageRecipe

#: Groups of runs as the figures name them, in the order of their keys.
GROUPS = {
    ("adamw", "float32"): "AdamW",
    ("sgd", "float32"): "SGD",
    ("adamw", "bfloat16"): "AdamW, pure bf16",
}
#: Held-out prompts of an evaluation during training, one sample each.
PROMPTS = LanguageRecipe.model_fields["evaluate_prompts"].default
_MEANS = ("sparsity_fp32", "sparsity_storage_norm", "norm", "pass_at_1", "kl")


def run_view(tensor: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """One row a GRPO run: group, learning_rate, seed, sparsities, norm, pass@1 and KL at the end.

    Columns: those of `estimates.rate_runs`, with `group`, `pass_at_1`, its standard error over prompts
    `pass_error` = √(p(1 − p)/n), and `kl`, in the groups' order.
    """
    runs = rate_runs(tensor)
    ends = last_evaluations(log).reindex(runs["run"]).reset_index(drop=True)
    keys = zip(runs["optimiser"], runs["master"], strict=True)
    view = runs.assign(
        group=pd.Series([GROUPS.get(key, " · ".join(key)) for key in keys], index=runs.index, dtype="str"),
        pass_at_1=ends["pass_at_1"],
        pass_error=np.sqrt(ends["pass_at_1"] * (1 - ends["pass_at_1"]) / PROMPTS),
        kl=ends["kl"],
    )
    place = {name: number for number, name in enumerate(GROUPS.values())}
    order = view["group"].map(place).fillna(len(place))
    return view.assign(order=order).sort_values(["order", "learning_rate", "seed"]).reset_index(drop=True)


def rate_summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Sparsity at each group's learning rates with its t interval over seeds, and means of the rest.

    One row a group and rate: group, learning_rate, seeds, sparsity, low, high, and means over seeds of the
    float32 view, null 1b, ‖ΔW‖, pass@1 and KL.
    """
    rows = []
    for (group, rate), own in runs.groupby(["group", "learning_rate"], sort=False):
        found = t_estimate(own["sparsity"], "seeds", 0.95)
        numbers = {"seeds": found.n, "sparsity": found.value, "low": found.low, "high": found.high}
        rows.append({"group": group, "learning_rate": rate, **numbers, **own[list(_MEANS)].mean()})
    return pd.DataFrame(rows)


def shown_summary(summary: pd.DataFrame) -> pd.DataFrame:
    """The summary under the names that a reader knows."""
    names = {"group": "runs", "learning_rate": "learning rate", "sparsity": "unchanged, bf16"}
    names |= {"sparsity_fp32": "unchanged, fp32", "sparsity_storage_norm": "noise of equal norm"}
    return summary.rename(columns={**names, "norm": "‖ΔW‖", "pass_at_1": "pass@1", "kl": "KL to base"})


def base_pass(log: pd.DataFrame) -> float:
    """pass@1 of the base at its last evaluation; NaN where the log has no base."""
    bases = last_evaluations(log[log["algorithm"].isna()])
    return float(bases["pass_at_1"].mean()) if len(bases) else float("nan")


def norm_order(runs: pd.DataFrame) -> float:
    """Spearman's correlation of sparsity with ‖ΔW‖ over runs with float32 masters: −1 if the norm decides."""
    own = runs[runs["master"] == "float32"]
    if own["norm"].nunique() < 3:
        return float("nan")
    return float(own["norm"].corr(own["sparsity"], method="spearman"))


def tenfold(runs: pd.DataFrame) -> pd.DataFrame:
    """Per seed AdamW at the mask rate and at ten times it: seed, sparsity, norm, both also _tenfold."""
    adamw, low = with_masters(runs, "adamw"), at_mask_rate(runs)
    high = adamw.assign(learning_rate=adamw["learning_rate"] / 10)
    both = low.merge(high, on="seed", suffixes=("", "_tenfold"))
    both = both[np.isclose(both["learning_rate"], both["learning_rate_tenfold"])]
    columns = ["seed", "sparsity", "sparsity_tenfold", "norm", "norm_tenfold"]
    return both[columns].reset_index(drop=True)


def norms_apart(runs: pd.DataFrame) -> float:
    """Least factor between SGD's and AdamW's norm at the mask rate, over pairs of runs of one seed."""
    both = with_masters(runs, "sgd").merge(at_mask_rate(runs), on="seed", suffixes=("", "_adamw"))
    factors = np.abs(np.log(both["norm"] / both["norm_adamw"]))
    return float(np.exp(factors.min())) if len(both) else float("nan")
