"""Tidy frames of sparse fine-tuning: accuracy and KL of runs under fixed masks, beside the paper's tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.chapters.sparse_finetuning.estimates import kl_distances, kl_ratios, under_masks
from threegates.estimates.accuracy import HEADLINE_SHARE, final_accuracy
from threegates.estimates.intervals import t_estimate
from threegates.estimates.paper import averages
from threegates.estimates.statistics import with_statistics
from threegates.estimates.verdict_frame import rules

#: Labels of the masks, in the order of the paper's tables, and their names there.
ARMS = {
    "dense": "dense",
    "principal": "M_princ",
    "off-principal": "not M_princ",
    "low": "M_low",
    "safe": "M_low or not M_princ",
    "random": "random",
    "random-half": "random half",
}
#: Followed over training: column of the views, in the order of the figure's panels.
MEASURES = ("pass_at_1", "kl", "log_ratio")
CONFIDENCE = 0.95


def arms_in(rows: pd.DataFrame) -> list[str]:
    """Labels of the masks among the rows, in the order of the paper's tables."""
    return [mask for mask in ARMS if mask in set(rows["mask"])]


def accuracy_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """The runs of the headline at their best learning rate: mask, seed, rate, pass_at_1, over_dense.

    `over_dense` is the difference from the dense run of the same seed, it too at its best rate.
    """
    runs = under_masks(final_accuracy(evaluation))
    best = runs.sort_values("pass_at_1").drop_duplicates(["mask", "seed"], keep="last")
    dense = best[best["mask"] == "dense"].set_index("seed")["pass_at_1"]
    best = best.assign(over_dense=best["pass_at_1"] - best["seed"].map(dense))
    ordered = best.sort_values(["mask", "seed"], key=_in_order)
    return ordered[["mask", "seed", "rate", "pass_at_1", "over_dense"]].reset_index(drop=True)


def _in_order(column: pd.Series) -> pd.Series:
    return column.map({mask: place for place, mask in enumerate(ARMS)}) if column.name == "mask" else column


def accuracy_summary(accuracy: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds and t interval of pass@1 and of its difference from dense: one row a cell.

    Columns: mask, measure (pass_at_1 or over_dense), value, low, high, seeds. Dense has no difference.

    **Source** Student (1908).
    """
    rows = []
    for mask, own in accuracy.groupby("mask", sort=False):
        for measure in ("pass_at_1", "over_dense")[: 1 if mask == "dense" else 2]:
            found = t_estimate(own[measure], "seeds", CONFIDENCE)
            numbers = {"value": found.value, "low": found.low, "high": found.high, "seeds": found.n}
            rows.append({"mask": mask, "measure": measure, **numbers})
    return pd.DataFrame(rows, columns=["mask", "measure", "value", "low", "high", "seeds"])


def course_rate(accuracy: pd.DataFrame) -> str | None:
    """The learning rate whose training is drawn: the one at which most dense runs are best."""
    rates = accuracy.loc[accuracy["mask"] == "dense", "rate"]
    return None if rates.empty else str(rates.mode().iloc[0])


def course_view(log: pd.DataFrame, rate: str | None) -> pd.DataFrame:
    """Evaluations along training at one learning rate: mask, seed, step, pass_at_1, kl, log_ratio.

    `log_ratio` is log KL(arm)/KL(dense) of the same seed and step. KL of a base unmoved is missing.
    """
    rows = under_masks(log)
    rows = rows[rows["pass_at_1"].notna() & (rows["rate"] == rate)]
    keys = ["seed", "rate", "step", "mask"]
    joined = rows[[*keys, "pass_at_1", "kl"]].merge(kl_ratios(log), on=keys, how="left")
    joined = joined.assign(kl=joined["kl"].where(joined["kl"] > 0))
    return joined.sort_values(["mask", "seed", "step"], key=_in_order).reset_index(drop=True)


def course_summary(course: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds and t interval at every evaluation: mask, step, measure, value, low, high, seeds.

    KL is averaged on the logarithm, as it is drawn; its value is a geometric mean, and `log_ratio` is given
    back as a ratio.

    **Source** Student (1908).
    """
    rows = []
    for (mask, step), own in course.groupby(["mask", "step"], sort=False):
        for measure in MEASURES:
            values = np.log(own["kl"]) if measure == "kl" else own[measure]
            found = t_estimate(values, "seeds", CONFIDENCE)
            ends = np.array([found.value, found.low, found.high])
            value, low, high = ends if measure == "pass_at_1" else np.exp(ends)
            known = {"mask": mask, "step": step, "measure": measure}
            rows.append({**known, "value": value, "low": low, "high": high, "seeds": found.n})
    return pd.DataFrame(rows, columns=["mask", "step", "measure", "value", "low", "high", "seeds"])


def paper_view(accuracy: pd.DataFrame, shares: pd.DataFrame) -> pd.DataFrame:
    """Tables 4 and 5 with their averages computed anew, beside ours: one row a mask, in points.

    Columns: mask; of the paper the share of linear weights, and at 320 and 500 steps the average score and
    its difference from dense, missing where the paper has no such arm; of ours the share, pass@1, its
    difference from dense with interval, and seeds.
    """
    paper = averages().rename(columns={"exact": "score"})
    scores = paper.pivot(index="mask", columns="steps", values="score")
    gaps = scores - scores.loc["dense"]
    printed = paper.drop_duplicates("mask").set_index("mask")["share"]
    summary = accuracy_summary(accuracy)
    own = summary[summary["measure"] == "over_dense"].set_index("mask")
    means, seeds = (accuracy.groupby("mask")["pass_at_1"].agg(of) for of in ("mean", "count"))
    free = shares[shares["share"] == HEADLINE_SHARE].drop_duplicates("mask").set_index("mask")["free_share"]
    rows = []
    for mask, name in ARMS.items():
        ours = own.loc[mask] if mask in own.index else pd.Series(dtype=float)
        row = {"mask": name, "paper, share": printed.get(name, np.nan)}
        for steps in gaps.columns:
            row[f"paper, {steps} steps"] = scores[steps].get(name, np.nan)
            row[f"minus dense, {steps}"] = gaps[steps].get(name, np.nan) if mask != "dense" else np.nan
        row |= {"ours, share": free.get(mask, np.nan), "ours, pass@1": 100 * means.get(mask, np.nan)}
        row["minus dense, ours"] = 100 * ours.get("value", np.nan)
        row |= {end: 100 * ours.get(end, np.nan) for end in ("low", "high")}
        rows.append(row | {"seeds": seeds.get(mask, 0)})
    return pd.DataFrame(rows)


def printed_differences() -> pd.DataFrame:
    """Tables 4 and 5 as differences from their dense run: mask, steps, over_dense as a share.

    Averages are those of the printed scores.

    **Source** Zhu et al. (2025), Tables 4 and 5.
    """
    paper = averages().assign(score=averages()["exact"] / 100)
    dense = paper[paper["mask"] == ARMS["dense"]].set_index("steps")["score"]
    labels = {name: mask for mask, name in ARMS.items() if mask != "dense"}
    rows = paper[paper["mask"].isin(labels)]
    differences = rows["score"] - rows["steps"].map(dense)
    found = pd.DataFrame(
        {"mask": rows["mask"].map(labels), "steps": rows["steps"], "over_dense": differences}
    )
    return found.reset_index(drop=True)


def cells_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """Every cell of the grid: mask, α of M_princ, learning rate, seeds, pass@1 with its interval."""
    runs = under_masks(final_accuracy(evaluation), share=None)
    runs = runs.sort_values(["mask", "share", "learning_rate"], key=_in_order)
    rows = []
    for (mask, share, rate), own in runs.groupby(["mask", "share", "learning_rate"], sort=False):
        found = t_estimate(own["pass_at_1"], "seeds", CONFIDENCE)
        cell = {"mask": ARMS[str(mask)], "α": share if mask != "dense" else None, "learning rate": rate}
        rows.append({**cell, "seeds": found.n, "pass@1": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def equal_size_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """M_princ beside as many weights outside of it, at one learning rate: one row a share and rate.

    M_princ at α = a and the complement of M_princ at α = 1 − a train equally many weights, all seeds paired.
    Columns: share, learning rate, principal and outside (mean pass@1), minus outside, low, high (95 % t
    interval over seeds), seeds.
    """
    runs = under_masks(final_accuracy(evaluation), share=None)
    share = runs["share"].astype(float)
    runs = runs.assign(trained=share.where(runs["mask"] == "principal", 1 - share).round(9))
    wide = runs[runs["mask"].isin(["principal", "off-principal"])].pivot_table(
        index=["trained", "learning_rate", "seed"], columns="mask", values="pass_at_1"
    )
    rows = []
    columns = ["share", "learning rate", "principal", "outside", "minus outside", "low", "high", "seeds"]
    if {"principal", "off-principal"} <= set(wide):
        for (trained, rate), own in wide.dropna().groupby(["trained", "learning_rate"]):
            found = t_estimate(own["principal"] - own["off-principal"], "seeds", CONFIDENCE)
            means = own.mean()
            row = [trained, rate, means["principal"], means["off-principal"], found.value]
            rows.append([*row, found.low, found.high, found.n])
    return pd.DataFrame(rows, columns=columns)


def resolution_view(verdicts: pd.DataFrame) -> pd.DataFrame:
    """What these seeds can separate: one row a claim, with half its interval and what could have been shown.

    Columns: claim (title), value, half width of the interval, tolerance (at least, or ± of an equivalence),
    detectable (the smallest true value that would have met the rule with power .8; missing for an
    equivalence).

    **Source** power of the t test by the noncentral t distribution, Cohen (1988).
    """
    judged = rules(with_statistics(verdicts))
    tolerance = judged["at_least"].astype(float).fillna(judged["upper"].astype(float))
    return pd.DataFrame(
        {
            "claim": judged["title"],
            "value": judged["value"],
            "half width": (judged["high"] - judged["low"]) / 2,
            "tolerance": tolerance,
            "equivalence": judged["at_least"].isna(),
            "detectable": judged["detectable"],
        }
    ).reset_index(drop=True)


def distance_view(log: pd.DataFrame) -> pd.DataFrame:
    """Distance of each mask's KL from the dense run's: mask, seeds, mean of |log ratio|, low, high.

    **Source** this study's measure of Zhu et al. (2025), Fig. 9; Student (1908).
    """
    distances = kl_distances(log)
    rows = []
    for mask in (one for one in ARMS if one in distances and one != "dense"):
        found = t_estimate(distances[mask].dropna(), "seeds", CONFIDENCE)
        numbers = {"seeds": found.n, "distance": found.value, "low": found.low, "high": found.high}
        rows.append({"mask": mask, "name": ARMS[mask], **numbers})
    return pd.DataFrame(rows, columns=["mask", "name", "seeds", "distance", "low", "high"])
