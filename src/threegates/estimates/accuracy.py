"""How often runs are right on held-out prompts at the end, and how arms differ per seed."""

from __future__ import annotations

import math

import pandas as pd

from threegates.estimates.intervals import Estimate, missing, t_estimate

_OF_PROMPTS = ("data", "prompt", "samples", "correct")


def final_accuracy(evaluation: pd.DataFrame) -> pd.DataFrame:
    """pass@1 of every tuned run in its final evaluation: its facts and labels, and `pass_at_1` in [0, 1].

    The mean over held-out prompts of the share of right samples. The base, which has no facts, is left out.
    """
    rows = evaluation[evaluation["method"].notna()]
    facts = rows.drop(columns=[c for c in _OF_PROMPTS if c in rows]).drop_duplicates("run").set_index("run")
    share = (rows["correct"] / rows["samples"]).groupby(rows["run"]).mean()
    return facts.assign(pass_at_1=share).reset_index()


def base_accuracy(evaluation: pd.DataFrame) -> float:
    """pass@1 of the base on the same prompts; NaN where it was not evaluated."""
    rows = evaluation[evaluation["method"].isna()]
    return float((rows["correct"] / rows["samples"]).mean()) if len(rows) else math.nan


def paired_gap(wide: pd.DataFrame, plus: str, minus: str, what: str, confidence: float) -> Estimate:
    """Mean over seeds of one column minus another, of seeds that have both.

    Parameters
    ----------
    wide : one row a seed, one column an arm. what : arms are, for the reason why one is missing.
    """
    absent = [arm for arm in (plus, minus) if arm not in wide]
    if absent:
        return missing(f"no RL runs {what} '{absent[0]}'", "seeds")
    return t_estimate((wide[plus] - wide[minus]).dropna(), "seeds", confidence)


def best_at_an_edge(runs: pd.DataFrame, arm: list[str]) -> list[str]:
    """Arms whose best learning rate is the smallest or the largest of their grid, each with that rate.

    The best rate is that of the highest pass@1, mean over seeds. Beyond the edge of a grid it may be better,
    so that a comparison of best cells says nothing there.

    Parameters
    ----------
    runs : one row a run, `learning_rate`, `pass_at_1` and the columns `arm` that tell arms apart.
    """
    means = runs.groupby([*arm, "learning_rate"])["pass_at_1"].mean()
    found = []
    for name, of_arm in means.groupby(arm):
        rates = of_arm.index.get_level_values("learning_rate")
        best = rates[int(of_arm.to_numpy().argmax())]
        if best in (rates.min(), rates.max()):
            found.append(f"{' '.join(map(str, name))} at {best:g}")
    return found


def told_of_edges(edges: list[str], rates: int) -> str:
    """Why a comparison of best cells is not judged, on a grid of so many learning rates."""
    told = f"the best learning rate lies on the edge of its grid: {', '.join(edges)}"
    return f"{told}; of {rates} rates every one is an edge" if rates <= 2 else told


#: α of M_princ in the headline, as the label `share` has it.
HEADLINE_SHARE = "0.5"
