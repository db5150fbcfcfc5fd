"""Estimates of what storage shows and hides of an update."""

from __future__ import annotations

from functools import partial

import pandas as pd

from threegates.estimates.intervals import Estimate, missing, t_estimate
from threegates.estimates.rows import Estimator, Tables, nearest_to_third, over_seeds
from threegates.measures.whole_models import PAIR_COLUMNS


def lens_totals(lens: pd.DataFrame) -> pd.DataFrame:
    """The lens table summed over tensors: one row a checkpoint with its facts, `master` and `only_bf16`.

    `master` is the format of the run's master weights where it is known; `only_bf16` says that nothing finer
    than bf16 was stored, so that a displacement below the gap cannot be seen.
    """
    keys = [column for column in (*PAIR_COLUMNS, "step", "updates", "last") if column in lens.columns]
    numbers = [column for column in lens.select_dtypes("number") if column not in {*keys, "layer"}]
    totals = lens.groupby(keys, dropna=False, sort=False)[numbers].sum().reset_index()
    coarse = (lens["stored_dtype_tuned"] == "BF16").groupby(lens["pair"]).all()
    pairs = totals["pair"]
    return totals.assign(master=pairs.map(masters(lens)), only_bf16=pairs.map(coarse))


def masters(frame: pd.DataFrame, key: str = "pair") -> pd.Series:
    """Format of the master weights by pair or run: the label, or float32 where a run of the lab has none.

    A pair of one's own says nothing of its training; its master is missing.
    """
    rows = frame.drop_duplicates(key).set_index(key)
    known = rows["rate"].map({"mask": "float32", "own": "float32", "reward": "float32"})
    return rows["master"].fillna(known) if "master" in rows else known


def _lens_runs(tables: Tables, algorithm: str | None, master: str = "float32") -> pd.DataFrame:
    """Checkpoints of the runs at RL's rate, or of all runs, that have such a master."""
    rows = lens_totals(tables.table("lens"))
    of_master = rows["master"].fillna("float32") == master
    of_method = (rows["algorithm"] == algorithm) & (rows["rate"] == "mask") if algorithm else True
    return rows[of_master & of_method]


def _lens_share(
    rows: pd.DataFrame,
    part: str,
    whole: str,
    confidence: float,
    absent: str = "runs of GRPO with float32 masters",
) -> Estimate:
    sums = rows.groupby("run")[[part, whole]].sum()
    if sums.empty:
        return missing(f"no {absent}")
    shares, unit = over_seeds(sums[part] / sums[whole].where(sums[whole] > 0), rows, "run")
    return t_estimate(shares, unit, confidence)


def _rule_agreement(exceptions: str, every_step: bool, tables: Tables, confidence: float) -> Estimate:
    """Share of weights for which a rule on displacements says whether storage changed."""
    rows = _lens_runs(tables, None)
    rows = rows[~rows["only_bf16"]]
    rows = rows if every_step else rows[rows["last"]]
    rows = rows.assign(agree=rows["size"] - rows[exceptions])
    return _lens_share(rows, "agree", "size", confidence, "checkpoint that keeps more than bf16")


def _single_step_hidden(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]]
    rows = rows.assign(below=rows["size"] - rows["single_step"])
    return _lens_share(rows, "below", "size", confidence)


def _accumulation_gap(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]]
    return _lens_share(rows.assign(more=rows["changed"] - rows["single_step"]), "more", "size", confidence)


def _hidden_becomes_visible(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    runs = [run for _, run in rows.groupby("run") if run["step"].nunique() > 1]
    if not runs:
        return missing("no GRPO run with float32 masters and checkpoints along its training")
    early = pd.concat([nearest_to_third(run) for run in runs])
    return _lens_share(early, "hidden_later", "hidden", confidence)


def _hidden_energy_deficit(over_noise: bool, tables: Tables, confidence: float) -> Estimate:
    """Share of hidden weights minus their share of the energy; the same of noise taken off, or not."""
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]].set_index("run", drop=False)
    if rows.empty:
        return missing("no runs of GRPO with float32 masters")
    deficit = rows["hidden"] / rows["moved"] - rows["energy_hidden"] / rows["energy"]
    noise = 1 - rows["noise_changed"] / rows["size"] - rows["noise_energy_hidden"] / rows["noise_energy"]
    found = deficit - noise if over_noise else deficit
    means, unit = over_seeds(found, rows.reset_index(drop=True), "run")
    return t_estimate(means, unit, confidence)


def _master_gap(algorithm: str, tables: Tables, confidence: float) -> Estimate:
    """Sparsity without float32 masters minus that with them, per seed."""
    by_master = {}
    for master in ("bfloat16", "float32"):
        rows = _lens_runs(tables, algorithm, master)
        rows = rows[rows["last"]]
        if rows.empty:
            return missing(f"no runs of {algorithm} with {master} masters", "seeds")
        by_master[master] = (1 - rows["changed"] / rows["size"]).groupby(rows["seed"]).mean()
    return t_estimate((by_master["bfloat16"] - by_master["float32"]).dropna(), "seeds", confidence)


ESTIMATES: dict[str, Estimator] = {
    "half_ulp_agreement": partial(_rule_agreement, "half_ulp_exceptions", False),
    "half_gap_agreement": partial(_rule_agreement, "gap_exceptions", True),
    "single_step_hidden": _single_step_hidden,
    "accumulation_gap": _accumulation_gap,
    "hidden_becomes_visible": _hidden_becomes_visible,
    "hidden_energy_deficit": partial(_hidden_energy_deficit, False),
    "hidden_energy_deficit_over_noise": partial(_hidden_energy_deficit, True),
    "master_sparsity_gap": partial(_master_gap, "grpo"),
    "master_sparsity_gap_sft": partial(_master_gap, "sft-teacher"),
}
