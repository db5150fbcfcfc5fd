"""Which rows of the study's tables an estimate looks at, and how they are averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import pandas as pd

from threegates.errors import RecordError
from threegates.estimates.intervals import Estimate, missing, t_estimate

STRIPES = ("q", "k", "v", "o")
#: Algorithms that stand for SFT in comparisons: on a teacher's traces in the lab, on the encoder plainly.
SFT = ("sft-teacher", "cross-entropy")
SAME_STYLE = "sft-same-style"
FP32_IS_LOST = "the RL checkpoints were stored in bf16; what fp32 would show is lost"


class MissingRecordError(RecordError):
    """A table cannot be given whole: one of its records is not there, and nothing may be measured now."""


class Tables(Protocol):
    """Whatever gives the study's tables by name."""

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name, one row as its module documents, joined with the pairs' facts.

        Raises
        ------
        MissingRecordError : one of its records is missing and may not be measured.
        """


#: What computes an estimate from the study's tables at a confidence.
Estimator = Callable[[Tables, float], Estimate]


def with_labels(rows: pd.DataFrame, *labels: str) -> pd.DataFrame:
    """The rows with these columns, all missing where none of the chapter's runs has such a label."""
    return rows.reindex(columns=[*rows.columns, *(label for label in labels if label not in rows)])


def label(rows: pd.DataFrame, name: str) -> pd.Series:
    """A label by row, all missing where none of the chapter's runs has it."""
    return with_labels(rows, name)[name].astype("str")


def seed_gap(plus: pd.DataFrame, minus: pd.DataFrame, column: str = "sparsity") -> pd.Series:
    """Per seed, the mean of one group over its algorithms minus the mean of the other."""
    means = [
        group.groupby(["seed", "algorithm"])[column].mean().groupby("seed").mean() for group in (plus, minus)
    ]
    return (means[0] - means[1]).dropna()


def rl_runs(pairs: pd.DataFrame, rate: str = "mask") -> pd.DataFrame:
    """Rows of the RL runs at a rate: the mask figures' rate, unless another is named."""
    return pairs[(pairs["method"] == "rl") & (pairs["rate"] == rate)]


def sft_runs(pairs: pd.DataFrame, rate: str = "own") -> pd.DataFrame:
    """Rows of the SFT runs that comparisons take, at their own rate unless another is named."""
    return pairs[pairs["algorithm"].isin(SFT) & (pairs["rate"] == rate)]


def same_style_runs(pairs: pd.DataFrame, rate: str = "mask") -> pd.DataFrame:
    """Rows of SFT on traces in the base's own style, at the mask figures' rate unless another is named."""
    return pairs[(pairs["algorithm"] == SAME_STYLE) & (pairs["rate"] == rate)]


def rft_runs(pairs: pd.DataFrame, rate: str = "mask") -> pd.DataFrame:
    """Rows of RFT, at the mask figures' rate unless another is named."""
    return pairs[(pairs["algorithm"] == "rft") & (pairs["rate"] == rate)]


def of_equal_updates(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Rows of both groups whose runs took one number of optimiser updates in common, and that in words.

    The largest number that both have; no rows where they have none, or where it is not known.
    """
    known = "updates" in first and "updates" in second
    common = set(first["updates"].dropna()) & set(second["updates"].dropna()) if known else set()
    if not common:
        told = "no runs of both took as many optimiser updates" if known else "updates are not known"
        return first.iloc[:0], second.iloc[:0], told
    number = max(common)
    told = f"after {int(number)} optimiser updates each"
    return first[first["updates"] == number], second[second["updates"] == number], told


def seed_means(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Means over the matrices of a run, then over the runs of a seed."""
    per_run = values.groupby([rows["seed"], rows["pair"]]).mean()
    return per_run.groupby("seed").mean()


def over_seeds(per_run: pd.Series, rows: pd.DataFrame, key: str = "pair") -> tuple[pd.Series, str]:
    """Means over the runs of each seed, and what they are means of; `per_run` is by the name in `key`.

    Runs of one seed share their first prompts, so that they are not independent. Published pairs state no
    seed: there each run is a unit of its own.
    """
    seeds = rows.drop_duplicates(key).set_index(key)["seed"].reindex(per_run.index)
    if seeds.isna().any():
        return per_run, "runs"
    return per_run.groupby(seeds).mean(), "seeds"


def as_trained(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of updates as they are, without those that were scaled to another's norm."""
    return rows[rows["variant"] == "raw"]


def lost_in_storage(rows: pd.DataFrame) -> bool:
    """Whether every tuned checkpoint was stored in bf16, so that no float32 view is left."""
    return bool((rows["stored_dtype_tuned"] == "BF16").all())


def over_partner(scaled: pd.DataFrame, own: pd.DataFrame, column: str, confidence: float) -> Estimate:
    """Per seed, the scaled runs' value minus the value of the runs whose norms they took."""
    scaled = scaled[scaled["partner"].isin(own["pair"])]
    if scaled.empty:
        return missing("no runs of SFT that were scaled to the norm of an RL run", "seeds")
    gaps = scaled[column] - scaled["partner"].map(own.set_index("pair")[column])
    return t_estimate(gaps.groupby(scaled["seed"]).mean(), "seeds", confidence)


def nearest_to_third(run: pd.DataFrame) -> pd.DataFrame:
    """Rows of the checkpoint of a run that lies nearest to a third of its training."""
    steps = np.sort(run["step"].unique())
    target = steps[-1] / 3
    return run[run["step"] == min(steps[:-1], key=lambda step: abs(step - target), default=-1)]
