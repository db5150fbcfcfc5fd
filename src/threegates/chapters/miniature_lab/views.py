"""Tables for the figures of the chapter about the lab itself."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy import stats

from threegates.estimates.intervals import t_estimate
from threegates.figures.names import METHODS, method_name


def learning_view(log: pd.DataFrame) -> pd.DataFrame:
    """Training logs of the reward-curve runs, with the names of their methods."""
    rows = log[log["rate"] == "reward"]
    return rows.assign(method=rows["algorithm"].map(method_name)).reset_index(drop=True)


def pass_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """pass@1 and pass@k of every evaluated checkpoint on held-out prompts, with 95 % intervals.

    pass@1 is the mean share of right samples over prompts with Student's interval over prompts; pass@k the
    share of prompts with any right sample, with Wilson's interval.

    **Source** Student (1908); Wilson (1927).
    """
    rows = [
        row for run, group in evaluation.groupby("run", sort=False) for row in _pass_rows(str(run), group)
    ]
    return pd.DataFrame(rows)


def _pass_rows(run: str, group: pd.DataFrame) -> list[dict[str, Any]]:
    """Both pass rates of one evaluated checkpoint."""
    first, prompts = group.iloc[0], len(group)
    base = pd.isna(first["algorithm"])
    method = METHODS["pretraining"] if base else method_name(first["algorithm"])
    facts = {"run": run, "label": "base" if base else f"{method} · {first['seed']}", "method": method}
    one = t_estimate(group["correct"] / group["samples"], "prompts", 0.95)
    hits = int((group["correct"] > 0).sum())
    any_right = stats.binomtest(hits, prompts).proportion_ci(0.95, "wilson")
    measured = {
        "pass@1": (one.value, one.low, one.high),
        f"pass@{int(group['samples'].max())}": (hits / prompts, any_right.low, any_right.high),
    }
    return [
        {**facts, "measure": name, "value": value, "low": low, "high": high, "prompts": prompts}
        for name, (value, low, high) in measured.items()
    ]


def gain_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """What each algorithm adds to the base's pass@1 on the same prompts, with its t interval over seeds."""
    shares = evaluation.assign(share=evaluation["correct"] / evaluation["samples"])
    per_run = shares.groupby("run", sort=False).agg(share=("share", "mean"), algorithm=("algorithm", "first"))
    base = per_run.loc[per_run["algorithm"].isna(), "share"].iloc[0]
    tuned = per_run[per_run["algorithm"].notna()]
    rows = []
    for algorithm, group in tuned.groupby("algorithm", sort=False):
        found = t_estimate(group["share"] - base, "seeds", 0.95)
        gain = {"gain": found.value, "low": found.low, "high": found.high, "seeds": found.n}
        rows.append({"method": method_name(algorithm), **gain})
    return pd.DataFrame(rows)


def algorithm_view(log: pd.DataFrame) -> pd.DataFrame:
    """Where the algorithms differ: means over the reward-curve runs of what the log records of them."""
    rows = learning_view(log)
    facts = rows.groupby("method", sort=False)
    return facts.agg(
        clip_fraction=("clip_fraction", "mean"),
        largest_clip_fraction=("clip_fraction", "max"),
        resampled_groups=("resampled_groups", "mean"),
        advantage_scale=("advantage_scale", "mean"),
    ).reset_index()
