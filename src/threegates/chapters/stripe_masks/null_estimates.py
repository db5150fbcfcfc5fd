"""What storage alone gives: the paper's measures on the nulls' masks in place of RL's."""

from __future__ import annotations

from functools import partial

from threegates.chapters.stripe_masks.estimates import agreement_excess
from threegates.estimates.intervals import Estimate, missing, t_estimate
from threegates.estimates.rows import LINEAR, Estimator, Tables, as_trained, rl_runs, seed_means


def _overlap_of_noise(target: str, sign: int, tables: Tables, confidence: float) -> Estimate:
    """Sign times (overlap of noise of RL's norm − density), mean over matrices, then over a seed's runs."""
    rows = as_trained(rl_runs(tables.table("overlap")))
    rows = rows[(rows["target"] == target) & (rows["view"] == "bf16") & rows["role"].isin(LINEAR)]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    gaps = sign * (rows["storage_norm_mean"] - rows["density"])
    return t_estimate(seed_means(rows, gaps), "seeds", confidence)


ESTIMATES: dict[str, Estimator] = {
    "noise_jaccard_excess": partial(agreement_excess, "storage_norm_mean", "bernoulli"),
    "noise_principal_avoidance": partial(_overlap_of_noise, "principal", -1),
    "noise_low_preference": partial(_overlap_of_noise, "low", 1),
    "noise_principal_not_low_avoidance": partial(_overlap_of_noise, "principal_not_low", -1),
}
