"""Estimates of stripes and of the agreement of masks."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.intervals import Estimate, exponential, jackknife_estimate, missing, t_estimate
from threegates.estimates.rows import STRIPES, Estimator, Tables, over_seeds

MINIMUM_RUNS = 5


def _stripe_rows(tables: Tables) -> pd.DataFrame:
    """Rows of Q, K, V and columns of O of the RL runs: where the paper sees stripes."""
    axis = tables.table("axis")
    along = np.where(axis["role"] == "o", "column", "row")
    return axis[(axis["method"] == "rl") & axis["role"].isin(STRIPES) & (axis["axis"] == along)]


def _stripe_excess(null: str | None, tables: Tables, confidence: float) -> Estimate:
    rows = _stripe_rows(tables)
    # The dispersion is the variance over the binomial one, so that Bernoulli masks are its unit.
    excess = np.log(rows["dispersion"]) - (np.log(rows[f"{null}_mean"]) if null else 0.0)
    means, unit = over_seeds(excess.groupby(rows["pair"]).mean(), rows)
    return exponential(t_estimate(means, unit, confidence))


def _orientation(
    roles: tuple[str, ...], along: str, null: str | None, tables: Tables, confidence: float
) -> Estimate:
    """Spread of the ratios along one axis minus that along the other, per run, mean over matrices."""
    axis = tables.table("axis")
    axis = axis[(axis["method"] == "rl") & axis["role"].isin(roles)]
    if axis.empty:
        return missing("no RL runs whose stripes were measured")
    spread = excess_spread(axis, "dispersion") - (excess_spread(axis, f"{null}_mean") if null else 0.0)
    signed = spread * np.where(axis["axis"] == along, 1.0, -1.0)
    per_tensor = signed.groupby([axis["pair"], axis["tensor"]]).sum(min_count=2)
    means, unit = over_seeds(per_tensor.groupby("pair").mean(), axis)
    return t_estimate(means, unit, confidence)


def excess_spread(axis: pd.DataFrame, column: str) -> pd.Series:
    """Standard deviation of row or column ratios beyond the binomial one, √(max(D − 1, 0) p(1 − p)/n).

    D is the dispersion in `column`, p the density and n the length of a line. Unlike D itself it does not
    grow with n, so rows and columns of a matrix that is not square can be compared. In [0, 1].

    **Source** variance components of a binomial with varying rate; Cochran (1943).
    """
    lines = axis["ratio"].map(len)
    matrix = [axis["pair"], axis["tensor"]]
    # A row is as long as there are columns, and the other way round.
    length = lines.groupby(matrix).transform("sum") - lines
    density = axis["density"]
    return np.sqrt((axis[column] - 1).clip(lower=0) * density * (1 - density) / length)


def _agreement_excess(of: str, over: str, tables: Tables, confidence: float) -> Estimate:
    """One column of the agreement of RL masks minus another, the smallest matrix type; jackknife over seeds.

    Runs of one seed are left out together. Where no seed is known, each run stands alone.
    """
    rows = tables.table("agreement")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(LINEAR)] if len(rows) else rows
    runs = set(rows["run_a"]) | set(rows["run_b"]) if len(rows) else set()
    if len(runs) < MINIMUM_RUNS:
        return missing(f"{len(runs)} RL runs of one base, at least {MINIMUM_RUNS} are needed")
    known = "seed_a" in rows and rows[["seed_a", "seed_b"]].notna().all(axis=None)
    kind = "seed" if known else "run"
    rows = rows.assign(excess=rows[of] - rows[over], unit_a=rows[f"{kind}_a"], unit_b=rows[f"{kind}_b"])
    unit_of = dict(zip(rows["run_a"], rows["unit_a"], strict=True))
    unit_of |= dict(zip(rows["run_b"], rows["unit_b"], strict=True))
    return jackknife_estimate(
        partial(_smallest_role, rows), Counter(unit_of.values()), f"{kind}s", confidence
    )


def _smallest_role(rows: pd.DataFrame, units: set) -> float:
    kept = rows[rows["unit_a"].isin(units) & rows["unit_b"].isin(units)]
    return float(kept.groupby("role")["excess"].mean().min())


ESTIMATES: dict[str, Estimator] = {
    "stripe_excess_bernoulli": partial(_stripe_excess, None),
    "stripe_excess_storage_density": partial(_stripe_excess, "storage_density"),
    "stripe_excess_magnitude": partial(_stripe_excess, "magnitude"),
    "rows_over_columns_qkv": partial(_orientation, ("q", "k", "v"), "row", None),
    "rows_over_columns_qkv_storage_density": partial(_orientation, ("q", "k", "v"), "row", "storage_density"),
    "columns_over_rows_o": partial(_orientation, ("o",), "column", None),
    "columns_over_rows_o_storage_density": partial(_orientation, ("o",), "column", "storage_density"),
    "jaccard_excess_bernoulli": partial(_agreement_excess, "jaccard", "bernoulli"),
    "jaccard_excess_storage_density": partial(_agreement_excess, "jaccard", "storage_density_mean"),
    "jaccard_excess_storage_norm": partial(_agreement_excess, "jaccard", "storage_norm_mean"),
    "jaccard_excess_magnitude": partial(_agreement_excess, "jaccard", "magnitude_mean"),
    # What storage alone gives: the same measure on the masks of noise of RL's norm in place of RL's.
    "noise_jaccard_excess": partial(_agreement_excess, "storage_norm_mean", "bernoulli"),
}
