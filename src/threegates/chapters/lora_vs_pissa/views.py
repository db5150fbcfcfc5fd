"""Tidy frames of adapters: what each start learns over learning rates, and where it collapses."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.chapters.lora_vs_pissa.estimates import (
    FULL,
    JUDGED,
    adapter_runs,
    between,
    collapses,
    norm_bounds,
)
from threegates.estimates.accuracy import HEADLINE_SHARE
from threegates.estimates.intervals import t_estimate
from threegates.estimates.rows import with_labels

#: Starts in the order of the figures, and their names.
STARTS = {
    "lora": "LoRA",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "orthonormal": "orthonormal LoRA",
    FULL: "all linear weights",
}
#: Names of what adapters are trained with.
ALGORITHMS = {"grpo": "GRPO", "dapo": "DAPO", "sft-teacher": "SFT"}
CONFIDENCE = 0.95
#: Rank whose training is drawn, where it was trained.
HEADLINE_RANK = 8
MEASURES = ("pass_at_1", "kl")


def starts_in(rows: pd.DataFrame) -> list[str]:
    """The starts among the rows, in the order of the figures."""
    return [init for init in STARTS if init in set(rows["init"])]


def ordered(rows: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Rows in the order of the starts, then of other columns."""
    place = {init: number for number, init in enumerate(STARTS)}
    return rows.sort_values(
        ["init", *by], key=lambda column: column.map(place) if column.name == "init" else column
    ).reset_index(drop=True)


def runs_view(evaluation: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """The runs under GRPO, which are judged: columns of `estimates.adapter_runs`."""
    runs = adapter_runs(evaluation, log)
    return ordered(runs[runs["algorithm"] == JUDGED], "rank", "learning_rate", "seed")


def others_view(evaluation: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """Adapters under other algorithms and under SFT, where they were trained: columns as in `runs_view`."""
    runs = adapter_runs(evaluation, log)
    own = (runs["algorithm"] != JUDGED) & (runs["init"] != FULL)
    return ordered(runs[own], "algorithm", "rank", "learning_rate", "seed")


def grid_view(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a start, rank and learning rate, over seeds.

    Columns: algorithm, init, rank, learning_rate, seeds, collapsed (how many), pass_at_1, low, high (t
    interval over seeds), kl and delta_norm (geometric means).

    **Source** Student (1908).
    """
    rows = []
    keys = ["algorithm", "init", "rank", "learning_rate"]
    for key, own in ordered(runs, "algorithm", "rank", "learning_rate").groupby(
        keys, dropna=False, sort=False
    ):
        found = t_estimate(own["pass_at_1"], "seeds", CONFIDENCE)
        row = dict(zip(keys, key, strict=True)) | {"seeds": found.n, "collapsed": int(own["collapsed"].sum())}
        row |= {"pass_at_1": found.value, "low": found.low, "high": found.high}
        rows.append(row | {name: _geometric(own[name]) for name in ("kl", "delta_norm")})
    numbers = ["seeds", "collapsed", "pass_at_1", "low", "high", "kl", "delta_norm"]
    return pd.DataFrame(rows, columns=[*keys, *numbers]).astype({"rank": "Int64"})


def _geometric(values: pd.Series) -> float:
    known = values[values > 0]
    return float(np.exp(np.log(known).mean())) if len(known) else np.nan


def grid_table(grid: pd.DataFrame) -> pd.DataFrame:
    """The grid as it is shown: names of starts, collapsed runs out of all."""
    of_all = [f"{count} of {seeds}" for count, seeds in zip(grid["collapsed"], grid["seeds"], strict=True)]
    methods = grid["algorithm"].map(lambda name: ALGORITHMS.get(name, name))
    named = grid.assign(init=grid["init"].map(STARTS), collapsed=of_all, algorithm=methods)
    names = {"algorithm": "under", "init": "start", "learning_rate": "learning rate", "pass_at_1": "pass@1"}
    names |= {"kl": "token KL", "delta_norm": "‖ΔW‖"}
    return named.drop(columns="seeds").rename(columns=names)


def best_view(runs: pd.DataFrame) -> pd.DataFrame:
    """Each start at its best rate: init, rank, seeds, pass_at_1, low, high, rates (those that were best)."""
    rows = []
    for (init, rank), own in runs.groupby(["init", "rank"], dropna=False, sort=False):
        best = own.sort_values("pass_at_1").drop_duplicates("seed", keep="last")
        found = t_estimate(best["pass_at_1"], "seeds", CONFIDENCE)
        rates = ", ".join(f"{rate:g}" for rate in sorted(best["learning_rate"].unique()))
        numbers = {"seeds": found.n, "pass_at_1": found.value, "low": found.low, "high": found.high}
        rows.append({"init": init, "rank": rank, **numbers, "rates": rates})
    return pd.DataFrame(rows).astype({"rank": "Int64"})


def best_table(best: pd.DataFrame) -> pd.DataFrame:
    """The best rates as they are shown."""
    names = {"init": "start", "pass_at_1": "pass@1", "rates": "best at learning rate"}
    return best.assign(init=best["init"].map(STARTS)).rename(columns=names)


def collapse_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Where LoRA collapses over where PiSSA does: seed, rank, which collapsed, ratios of rate and norm."""
    found = collapses(runs)
    which = found["which"].replace({"lora": "LoRA alone", "pissa": "PiSSA alone"})
    return pd.DataFrame(
        {
            "seed": found["seed"],
            "rank": found["rank"],
            "collapsed": which,
            "ratio of rates": np.exp(found["log_rate"]),
            "ratio of ‖ΔW‖": np.exp(found["log_norm"]),
        }
    )


def shown_rank(runs: pd.DataFrame) -> int | None:
    """The rank whose training is drawn: `HEADLINE_RANK`, else the median of those that were trained."""
    ranks = sorted(runs["rank"].dropna().unique())
    if not ranks:
        return None
    return HEADLINE_RANK if HEADLINE_RANK in ranks else int(ranks[len(ranks) // 2])


def course_view(log: pd.DataFrame, rank: int | None) -> pd.DataFrame:
    """Evaluations along RL with adapters of one rank, and of all linear weights at every rate they have.

    Columns: init, learning_rate, seed, step, pass_at_1, kl (missing where it is zero).
    """
    rows = with_labels(log, "init", "rank", "mask", "share")
    dense = (rows["mask"] == "dense") & (rows["share"] == HEADLINE_SHARE)
    rows = rows.assign(init=rows["init"].mask(dense, FULL))
    own = (rows["rank"] == str(rank)) | (rows["init"] == FULL)
    rows = rows[own & (rows["algorithm"] == JUDGED) & rows["pass_at_1"].notna()]
    rows = rows.assign(kl=rows["kl"].where(rows["kl"] > 0))
    columns = ["init", "learning_rate", "seed", "step", *MEASURES]
    return ordered(rows[columns], "learning_rate", "seed", "step")


def course_summary(course: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with t intervals: init, learning_rate, step, measure, value, low, high, seeds.

    KL is averaged on the logarithm, as it is drawn.

    **Source** Student (1908).
    """
    rows = []
    keys = ["init", "learning_rate", "step"]
    for key, own in course.groupby(keys, sort=False):
        for measure in MEASURES:
            values = np.log(own["kl"]) if measure == "kl" else own[measure]
            found = t_estimate(values, "seeds", CONFIDENCE)
            ends = np.array([found.value, found.low, found.high])
            value, low, high = np.exp(ends) if measure == "kl" else ends
            known = dict(zip(keys, key, strict=True)) | {"measure": measure}
            rows.append({**known, "value": value, "low": low, "high": high, "seeds": found.n})
    return pd.DataFrame(rows, columns=[*keys, "measure", "value", "low", "high", "seeds"])


def start_rates(runs: pd.DataFrame) -> str | None:
    """Learning rate at which most of the runs of all linear weights are best, as text; None without any."""
    full = runs[runs["init"] == FULL].sort_values("pass_at_1").drop_duplicates("seed", keep="last")
    return None if full.empty else f"{full['learning_rate'].mode().iloc[0]:g}"


def at_the_edge(runs: pd.DataFrame) -> str:
    """Which starts are best at an end of the grid of rates, and may be better beyond it; or nothing."""
    known = runs[(runs["algorithm"] == JUDGED) & runs["rank"].notna()]
    told = []
    for init, own in known.groupby("init", sort=False):
        means = own.pivot_table(index="rank", columns="learning_rate", values="pass_at_1")
        best = means.dropna(how="all").idxmax(axis=1)
        for end, word in ((means.columns.min(), "lowest"), (means.columns.max(), "highest")):
            ranks = ", ".join(str(rank) for rank in best.index[best == end])
            if ranks and means.shape[1] > 1:
                told.append(f"{STARTS[str(init)]} is best at the {word} rate of the grid at rank {ranks}")
    return f"{'; '.join(told)}: beyond that none was tried. " if told else ""


def norm_reading(runs: pd.DataFrame) -> str:
    """What the norms at collapse say of LoRA and PiSSA: a clause in plain words."""
    found = collapses(runs)
    which = set(found["which"]) - {"neither"}
    if not which:
        return "neither start collapsed on this grid"
    if "both" not in which:
        return f"only {' and '.join(STARTS[start] for start in sorted(which))} collapsed on this grid"
    least, most = norm_bounds(found)
    if least > 1:
        return "PiSSA collapses earlier in the norm too"
    if most < 1:
        return "PiSSA collapses no earlier in the norm, so that its larger steps are enough to explain it"
    return (
        f"the grid of rates leaves for LoRA over PiSSA anything {between(least, most)}, so that PiSSA may "
        "collapse earlier in the norm too, or by its larger steps alone"
    )
