"""Estimates of where updates lie: on principal or small weights, along principal directions."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.intervals import Estimate, exponential, missing, t_estimate
from threegates.estimates.rows import (
    FP32_IS_LOST,
    Estimator,
    Tables,
    as_trained,
    lost_in_storage,
    over_partner,
    rl_runs,
    seed_gap,
    seed_means,
    sft_runs,
)


def _overlap_gap(
    target: str, sign: int, null: str | None, view: str, tables: Tables, confidence: float
) -> Estimate:
    """Sign times (overlap − baseline) of RL's masks, mean over matrices, then over a seed's algorithms.

    The baseline is the target's own density, or the mean overlap of a null's masks.
    """
    rows = as_trained(rl_runs(tables.table("overlap")))
    rows = rows[(rows["target"] == target) & (rows["view"] == view) & rows["role"].isin(LINEAR)]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    if view == "fp32" and lost_in_storage(rows):
        return missing(FP32_IS_LOST, "seeds")
    baseline = rows[f"{null}_mean"] if null else rows["density"]
    return t_estimate(seed_means(rows, sign * (rows["overlap"] - baseline)), "seeds", confidence)


def _run_means(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means of a column over the linear matrices of each run; undefined where a matrix has no value."""
    rows = rows[rows["role"].isin(LINEAR)]
    keys = ["pair", "method", "algorithm", "rate", "seed", "variant", "partner"]
    return rows.groupby(keys, dropna=False)[column].mean().reset_index()


def _sft_beside_rl(rows: pd.DataFrame, column: str, matched: bool, confidence: float) -> Estimate:
    """SFT minus RL: both as trained, or SFT scaled to the norm of an RL run minus that very run."""
    runs = _run_means(rows, column)
    rl = rl_runs(as_trained(runs))
    if rl.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    if matched:
        return over_partner(sft_runs(runs[runs["variant"] == "norm-matched"]), rl, column, confidence)
    other = sft_runs(as_trained(runs))
    if other.empty:
        return missing("no runs of SFT at the rate 'own'", "seeds")
    return t_estimate(seed_gap(other, rl, column), "seeds", confidence)


def _overlap_of_sft(view: str, matched: bool, tables: Tables, confidence: float) -> Estimate:
    """Overlap of SFT's mask with principal weights minus the overlap of RL's mask."""
    rows = tables.table("overlap")
    rows = rows[(rows["target"] == "principal") & (rows["view"] == view)]
    if view == "fp32" and not rows.empty and lost_in_storage(rows):
        return missing(FP32_IS_LOST, "seeds")
    return _sft_beside_rl(rows, "overlap", matched, confidence)


def _energy_of_sft(view: str, matched: bool, tables: Tables, confidence: float) -> Estimate:
    """Energy of SFT's update in the principal block over the energy of RL's, geometric mean."""
    rows = tables.table("direction")
    rows = rows[rows["view"] == view]
    # An update that has nothing there has no logarithm.
    rows = rows.assign(log=np.log(rows["rho2"].where(rows["rho2"] > 0)))
    return exponential(_sft_beside_rl(rows, "log", matched, confidence))


def _off_principal(tables: Tables, confidence: float) -> Estimate:
    """Energy of an update in random frames over its energy in the principal frames, geometric mean."""
    rows = as_trained(rl_runs(tables.table("direction")))
    rows = rows[rows["role"].isin(LINEAR) & (rows["view"] == "fp32")]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    ratio = np.log(rows["rotation_mean"]) - np.log(rows["rho2"])
    return exponential(t_estimate(seed_means(rows, ratio), "seeds", confidence))


def _overlap_of_noise(target: str, sign: int, tables: Tables, confidence: float) -> Estimate:
    """Sign times (overlap of noise of RL's norm − density), mean over matrices, then over a seed's runs."""
    rows = as_trained(rl_runs(tables.table("overlap")))
    rows = rows[(rows["target"] == target) & (rows["view"] == "bf16") & rows["role"].isin(LINEAR)]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    gaps = sign * (rows["storage_norm_mean"] - rows["density"])
    return t_estimate(seed_means(rows, gaps), "seeds", confidence)


ESTIMATES: dict[str, Estimator] = {
    "principal_avoidance": partial(_overlap_gap, "principal", -1, None, "bf16"),
    "principal_avoidance_storage_density": partial(_overlap_gap, "principal", -1, "storage_density", "bf16"),
    "principal_avoidance_storage_norm": partial(_overlap_gap, "principal", -1, "storage_norm", "bf16"),
    "principal_avoidance_magnitude": partial(_overlap_gap, "principal", -1, "magnitude", "bf16"),
    "principal_avoidance_fp32": partial(_overlap_gap, "principal", -1, None, "fp32"),
    "principal_avoidance_fp32_magnitude": partial(_overlap_gap, "principal", -1, "magnitude", "fp32"),
    "low_preference": partial(_overlap_gap, "low", 1, None, "bf16"),
    "low_preference_storage_density": partial(_overlap_gap, "low", 1, "storage_density", "bf16"),
    "low_preference_storage_norm": partial(_overlap_gap, "low", 1, "storage_norm", "bf16"),
    "principal_not_low_avoidance": partial(_overlap_gap, "principal_not_low", -1, None, "bf16"),
    "principal_not_low_avoidance_storage_density": partial(
        _overlap_gap, "principal_not_low", -1, "storage_density", "bf16"
    ),
    "principal_not_low_avoidance_storage_norm": partial(
        _overlap_gap, "principal_not_low", -1, "storage_norm", "bf16"
    ),
    "principal_not_low_avoidance_magnitude": partial(
        _overlap_gap, "principal_not_low", -1, "magnitude", "bf16"
    ),
    "off_principal_directions": _off_principal,
    "principal_overlap_sft_over_rl": partial(_overlap_of_sft, "bf16", False),
    "principal_overlap_sft_over_rl_equal_norm": partial(_overlap_of_sft, "bf16", True),
    "principal_overlap_sft_over_rl_fp32": partial(_overlap_of_sft, "fp32", False),
    "principal_energy_sft_over_rl": partial(_energy_of_sft, "fp32", False),
    "principal_energy_sft_over_rl_equal_norm": partial(_energy_of_sft, "bf16", True),
    # What storage alone gives: the same measures on the masks of noise of RL's norm in place of RL's.
    "noise_principal_avoidance": partial(_overlap_of_noise, "principal", -1),
    "noise_low_preference": partial(_overlap_of_noise, "low", 1),
    "noise_principal_not_low_avoidance": partial(_overlap_of_noise, "principal_not_low", -1),
}
