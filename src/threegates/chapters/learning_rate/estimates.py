"""Estimates of what learning rate and optimiser do to sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.intervals import Estimate, missing, t_estimate
from threegates.estimates.rows import Estimator, Tables, label
from threegates.measures.whole_models import pair_sparsity

#: Factor by which AdamW's norm may lie outside SGD's norms before nothing is compared.
REACH = 1.5
_TENFOLD = 10.0

#: From the SGD runs of a seed and the AdamW run, the sparsity that SGD has at the same pass@1, or norm.
Choice = Callable[[pd.DataFrame, pd.Series], float]


def rate_runs(tensor: pd.DataFrame) -> pd.DataFrame:
    """The GRPO runs of the tensor table: one row a pair.

    Columns: those of `whole_models.pair_sparsity`; `optimiser`, AdamW's where the run has no label;
    `master`, float32 where it has none; `norm`, ‖ΔW‖_F from base to stored checkpoint over all parameters.
    """
    rows = tensor[(tensor["algorithm"] == "grpo") & (tensor["status"] == "compared")]
    pairs = pair_sparsity(rows)
    squares = rows["norm_delta"].astype(float).pow(2).groupby(rows["pair"]).sum(min_count=1)
    norms = squares.pow(0.5)
    labels, known = (
        {"optimiser": "adamw", "master": "float32"},
        rows.drop_duplicates("pair").set_index("pair"),
    )
    return pairs.assign(
        norm=pairs["pair"].map(norms),
        **{name: pairs["pair"].map(label(known, name)).fillna(usual) for name, usual in labels.items()},
    )


def last_evaluations(log: pd.DataFrame) -> pd.DataFrame:
    """By run, pass@1 and KL to the base at its last held-out evaluation."""
    rows = log[log["pass_at_1"].notna()].sort_values("step")
    return rows.groupby("run")[["pass_at_1", "kl"]].last()


def with_masters(runs: pd.DataFrame, optimiser: str) -> pd.DataFrame:
    """Runs of an optimiser with float32 masters: the only ones that are compared with each other."""
    return runs[(runs["optimiser"] == optimiser) & (runs["master"] == "float32")]


def at_mask_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """AdamW's runs at the learning rate of the mask figures."""
    own = with_masters(runs, "adamw")
    return own[own["rate"] == "mask"]


def _fall_at_ten_times(tables: Tables, confidence: float) -> Estimate:
    runs = rate_runs(tables.table("tensor"))
    low, adamw = at_mask_rate(runs), with_masters(runs, "adamw")
    of_seed = low.groupby("seed")["learning_rate"].mean()
    high = adamw[np.isclose(adamw["learning_rate"], _TENFOLD * adamw["seed"].map(of_seed).astype(float))]
    if high.empty:
        return missing("no runs of GRPO at the mask learning rate and at ten times it", "seeds")
    means = [group.groupby("seed")["sparsity"].mean() for group in (low, high)]
    return t_estimate((means[0] - means[1]).dropna(), "seeds", confidence)


def at_equal_pass(sgd: pd.DataFrame, own: pd.Series) -> float:
    """Sparsity of the SGD run whose pass@1 is nearest to AdamW's; of two as near, the nearer in norm."""
    distance = (sgd["pass_at_1"] - own["pass_at_1"]).abs().round(9)
    in_norm = (np.log(sgd["norm"]) - math.log(own["norm"])).abs()
    order = sgd.assign(distance=distance, in_norm=in_norm).dropna(subset="distance")
    return float(order.sort_values(["distance", "in_norm"])["sparsity"].iloc[0]) if len(order) else math.nan


def at_equal_norm(sgd: pd.DataFrame, own: pd.Series) -> float:
    """SGD's sparsity at AdamW's ‖ΔW‖, between its rates linear in the logarithm of the norm.

    Outside SGD's norms it is the sparsity at the nearest norm; by more than a factor of `REACH`, NaN.
    """
    curve = sgd.sort_values("norm")
    ends = float(curve["norm"].iloc[0]), float(curve["norm"].iloc[-1])
    if not ends[0] / REACH <= own["norm"] <= ends[1] * REACH:
        return math.nan
    return float(np.interp(math.log(own["norm"]), np.log(curve["norm"]), curve["sparsity"]))


def _sgd_minus_adamw(choose: Choice, unlike: str, tables: Tables, confidence: float) -> Estimate:
    """Per seed, SGD's sparsity where it equals AdamW at the mask rate in something, minus AdamW's."""
    runs = rate_runs(tables.table("tensor"))
    runs = runs.assign(pass_at_1=runs["run"].map(last_evaluations(tables.table("log"))["pass_at_1"]))
    sgd, adamw = with_masters(runs, "sgd"), at_mask_rate(runs)
    shared = set(sgd["seed"]) & set(adamw["seed"])
    if not shared:
        return missing("no seed with runs of GRPO by SGD and by AdamW at the mask rate", "seeds")
    gaps = [
        choose(sgd[sgd["seed"] == own["seed"]], own) - own["sparsity"]
        for _, own in adamw[adamw["seed"].isin(shared)].sort_values("seed").iterrows()
    ]
    found = t_estimate(gaps, "seeds", confidence)
    return found if found.n else missing(unlike, "seeds")


ESTIMATES: dict[str, Estimator] = {
    "sparsity_fall_at_ten_times_rate": _fall_at_ten_times,
    "sparsity_sgd_minus_adamw": partial(_sgd_minus_adamw, at_equal_pass, "no run by SGD was evaluated"),
    "sparsity_sgd_minus_adamw_equal_norm": partial(
        _sgd_minus_adamw, at_equal_norm, "no run by SGD comes near AdamW's norm at the mask rate"
    ),
}
