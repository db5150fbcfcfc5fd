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


#: α of M_princ in the headline, as the label `share` has it.
HEADLINE_SHARE = "0.5"
