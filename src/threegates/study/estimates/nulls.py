"""What storage alone gives: the paper's measures on the nulls' masks in place of RL's."""

from __future__ import annotations

from functools import partial

from threegates.study.estimates.intervals import Estimate, jackknife_estimate, missing, t_estimate
from threegates.study.estimates.rows import LINEAR, Estimator, Tables, as_trained, rl_runs, seed_means
from threegates.study.estimates.stripes import smallest_role


def _jaccard_of_noise(tables: Tables, confidence: float) -> Estimate:
    """Mean Jaccard index of noise of the runs' norms minus the Bernoulli one, smallest matrix type."""
    rows = tables.table("agreement")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(LINEAR)] if len(rows) else rows
    runs = set(rows["run_a"]) | set(rows["run_b"]) if len(rows) else set()
    if len(runs) < 3:
        return missing(f"{len(runs)} RL runs of one base, at least 3 are needed")
    rows = rows.assign(excess=rows["storage_norm_mean"] - rows["bernoulli"])
    return jackknife_estimate(partial(smallest_role, rows), runs, "runs", confidence)


def _overlap_of_noise(target: str, sign: int, tables: Tables, confidence: float) -> Estimate:
    """Sign times (overlap of noise of RL's norm − density), mean over matrices, then over a seed's runs."""
    rows = as_trained(rl_runs(tables.table("overlap")))
    rows = rows[(rows["target"] == target) & (rows["view"] == "bf16") & rows["role"].isin(LINEAR)]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    gaps = sign * (rows["storage_norm_mean"] - rows["density"])
    return t_estimate(seed_means(rows, gaps), "seeds", confidence)


ESTIMATES: dict[str, Estimator] = {
    "noise_jaccard_excess": _jaccard_of_noise,
    "noise_principal_avoidance": partial(_overlap_of_noise, "principal", -1),
    "noise_low_preference": partial(_overlap_of_noise, "low", 1),
    "noise_principal_not_low_avoidance": partial(_overlap_of_noise, "principal_not_low", -1),
}
