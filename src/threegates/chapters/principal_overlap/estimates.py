"""Estimates of where updates lie: on principal or small weights, along principal directions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.intervals import Estimate, exponential, missing, noted, t_estimate
from threegates.estimates.rows import (
    FP32_IS_LOST,
    Estimator,
    Tables,
    as_trained,
    lost_in_storage,
    of_equal_updates,
    over_partner,
    rft_runs,
    rl_runs,
    same_style_runs,
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
    keys += ["updates"] * ("updates" in rows)
    return rows.groupby(keys, dropna=False)[column].mean().reset_index()


#: Whose runs stand beside RL's.
OWN_RATE, EQUAL_RATE, EQUAL_STEPS = "SFT at the rate 'own'", "SFT at RL's rate", "SFT of as many updates"
OWN_STYLE, RFT, SCALED = "SFT in the base's own style", "RFT", "SFT scaled to the norm of an RL run"
OWN_STYLE_OWN_RATE = "SFT in the base's own style at its own rate"
_GROUPS: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    OWN_RATE: sft_runs,
    EQUAL_STEPS: sft_runs,
    EQUAL_RATE: partial(sft_runs, rate="mask"),
    OWN_STYLE: same_style_runs,
    OWN_STYLE_OWN_RATE: partial(same_style_runs, rate="own"),
    RFT: rft_runs,
}


def _beside_rl(rows: pd.DataFrame, column: str, whose: str, confidence: float) -> Estimate:
    """A group of runs minus RL, as trained; or SFT scaled to the norm of an RL run minus that very run."""
    runs = _run_means(rows, column)
    rl = rl_runs(as_trained(runs))
    if rl.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    if whose == SCALED:
        return over_partner(sft_runs(runs[runs["variant"] == "norm-matched"]), rl, column, confidence)
    other, told = _GROUPS[whose](as_trained(runs)), ""
    if whose == EQUAL_STEPS and len(other):
        rl, other, told = of_equal_updates(rl, other)
    if other.empty:
        return missing(told or f"no runs of {whose}", "seeds")
    return noted(t_estimate(seed_gap(other, rl, column), "seeds", confidence), told)


def _overlap_beside_rl(whose: str, view: str, tables: Tables, confidence: float) -> Estimate:
    """Overlap of a group's masks with principal weights minus the overlap of RL's masks."""
    rows = tables.table("overlap")
    rows = rows[(rows["target"] == "principal") & (rows["view"] == view)]
    if view == "fp32" and not rows.empty and lost_in_storage(rows):
        return missing(FP32_IS_LOST, "seeds")
    return _beside_rl(rows, "overlap", whose, confidence)


def _energy_beside_rl(whose: str, view: str, tables: Tables, confidence: float) -> Estimate:
    """Energy of a group's updates in the principal block over the energy of RL's, geometric mean."""
    rows = tables.table("direction")
    rows = rows[rows["view"] == view]
    # An update that has nothing there has no logarithm.
    rows = rows.assign(log=np.log(rows["rho2"].where(rows["rho2"] > 0)))
    return exponential(_beside_rl(rows, "log", whose, confidence))


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


def _sparsity_of_scaled(rate: str, tables: Tables, confidence: float) -> Estimate:
    """Sparsity of linear layers of an RL run minus that of SFT whose ΔW was scaled to its norm.

    rate : SFT's. Each matrix is scaled by itself, and rounded to bf16 afterwards.
    """
    rows = tables.table("overlap")
    rows = rows[(rows["target"] == "principal") & (rows["view"] == "bf16") & rows["role"].isin(LINEAR)]
    keys = ["pair", "method", "algorithm", "rate", "seed", "variant", "partner"]
    sums = rows.groupby(keys, dropna=False)[["changed", "size"]].sum()
    runs = (sums["changed"] / sums["size"]).rename("changed").reset_index()
    rl, scaled = rl_runs(as_trained(runs)), runs[runs["variant"] == "norm-matched"]
    return over_partner(sft_runs(scaled, rate), rl, "changed", confidence)


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
    "principal_overlap_sft_over_rl": partial(_overlap_beside_rl, OWN_RATE, "bf16"),
    "principal_overlap_sft_over_rl_equal_rate": partial(_overlap_beside_rl, EQUAL_RATE, "bf16"),
    "principal_overlap_sft_over_rl_equal_steps": partial(_overlap_beside_rl, EQUAL_STEPS, "bf16"),
    "principal_overlap_sft_over_rl_equal_norm": partial(_overlap_beside_rl, SCALED, "bf16"),
    "principal_overlap_sft_over_rl_fp32": partial(_overlap_beside_rl, OWN_RATE, "fp32"),
    "principal_overlap_same_style_over_rl": partial(_overlap_beside_rl, OWN_STYLE, "bf16"),
    "principal_overlap_same_style_own_rate_over_rl": partial(_overlap_beside_rl, OWN_STYLE_OWN_RATE, "bf16"),
    "principal_overlap_rft_over_rl": partial(_overlap_beside_rl, RFT, "bf16"),
    "principal_energy_sft_over_rl": partial(_energy_beside_rl, OWN_RATE, "fp32"),
    "principal_energy_sft_over_rl_equal_rate": partial(_energy_beside_rl, EQUAL_RATE, "fp32"),
    "principal_energy_sft_over_rl_equal_steps": partial(_energy_beside_rl, EQUAL_STEPS, "fp32"),
    "principal_energy_sft_over_rl_equal_norm": partial(_energy_beside_rl, SCALED, "bf16"),
    "principal_energy_same_style_over_rl": partial(_energy_beside_rl, OWN_STYLE, "fp32"),
    "principal_energy_same_style_own_rate_over_rl": partial(_energy_beside_rl, OWN_STYLE_OWN_RATE, "fp32"),
    "principal_energy_rft_over_rl": partial(_energy_beside_rl, RFT, "fp32"),
    "linear_sparsity_gap_equal_norm": partial(_sparsity_of_scaled, "own"),
    "linear_sparsity_gap_equal_norm_and_rate": partial(_sparsity_of_scaled, "mask"),
    # What storage alone gives: the same measures on the masks of noise of RL's norm in place of RL's.
    "noise_principal_avoidance": partial(_overlap_of_noise, "principal", -1),
    "noise_low_preference": partial(_overlap_of_noise, "low", 1),
    "noise_principal_not_low_avoidance": partial(_overlap_of_noise, "principal_not_low", -1),
}
