"""Estimates of what a rotation of heads does to the overlap of masks."""

from __future__ import annotations

import math
from functools import partial

import pandas as pd

from threegates.estimates.intervals import Estimate, exact, missing, t_estimate
from threegates.estimates.rows import Estimator, Tables, seed_means
from threegates.measures.rotation import BACK, ROTATED, UNTOUCHED

_NO_OTHER = "no untouched run of another seed to compare with"
#: The least relative change that float64 tells from none.
_ROUNDING = 2.0**-53


def _excess(rows: pd.DataFrame, comparison: str, touched: bool) -> pd.Series:
    """Per seed, the excess Jaccard index with an untouched run of another seed, mean over matrices."""
    own = rows[(rows["comparison"] == comparison) & (rows["touched"] == touched) & ~rows["same_seed"]]
    return seed_means(own, own["excess"])


def _loss(comparison: str, touched: bool, tables: Tables, confidence: float) -> Estimate:
    """Excess between two untouched runs minus that between one of them and a rotated run, over seeds."""
    rows = tables.table("rotation")
    losses = (_excess(rows, UNTOUCHED, touched) - _excess(rows, comparison, touched)).dropna()
    return t_estimate(losses, "seeds", confidence) if len(losses) else missing(_NO_OTHER, "seeds")


def _loss_beyond_storage(tables: Tables, confidence: float) -> Estimate:
    """Jaccard index between untouched runs minus that with a rotated run, beyond the same of null 1a."""
    rows = tables.table("rotation")
    rows = rows.assign(excess=rows["jaccard"] - rows["jaccard_null"])
    losses = (_excess(rows, UNTOUCHED, True) - _excess(rows, ROTATED, True)).dropna()
    return t_estimate(losses, "seeds", confidence) if len(losses) else missing(_NO_OTHER, "seeds")


def _excess_with(comparison: str, tables: Tables, confidence: float) -> Estimate:
    """Excess of rotated V and O between an untouched and a rotated run, in the frame of the comparison."""
    found = _excess(tables.table("rotation"), comparison, True).dropna()
    return t_estimate(found, "seeds", confidence) if len(found) else missing(_NO_OTHER, "seeds")


def _spectrum_digits(tables: Tables, confidence: float) -> Estimate:
    """−log₁₀ of the largest NSS over all frames, computed before rounding; at most what float64 can tell."""
    frame = tables.table("frame")
    if frame.empty:
        return missing("no rotated base", "matrices")
    digits = -math.log10(max(float(frame["nss_exact"].max(skipna=False)), _ROUNDING))
    return exact(digits, len(frame), "matrices")


ESTIMATES: dict[str, Estimator] = {
    "rotation_loss": partial(_loss, ROTATED, True),
    "rotation_loss_elsewhere": partial(_loss, ROTATED, False),
    "rotation_loss_rotated_back": partial(_loss, BACK, True),
    "rotation_loss_beyond_storage": _loss_beyond_storage,
    "rotated_excess_jaccard": partial(_excess_with, ROTATED),
    "rotated_back_excess_jaccard": partial(_excess_with, BACK),
    "rotation_spectrum_digits": _spectrum_digits,
}
