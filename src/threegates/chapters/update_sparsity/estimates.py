"""Estimates of how many weights stay as they were."""

from __future__ import annotations

from functools import partial

from threegates.estimates.intervals import Estimate, missing, noted, t_estimate
from threegates.estimates.rows import (
    Estimator,
    Tables,
    of_equal_updates,
    over_seeds,
    rl_runs,
    seed_gap,
    sft_runs,
)
from threegates.measures.whole_models import pair_sparsity


def _gap_to(algorithm: str, rate: str, tables: Tables, confidence: float) -> Estimate:
    pairs = pair_sparsity(tables.table("tensor"))
    other = pairs[(pairs["algorithm"] == algorithm) & (pairs["rate"] == rate)]
    if rl_runs(pairs).empty or other.empty:
        absent = (
            "RL at the mask learning rate" if rl_runs(pairs).empty else f"{algorithm} at the rate '{rate}'"
        )
        return missing(f"no runs of {absent}", "seeds")
    return t_estimate(seed_gap(rl_runs(pairs), other), "seeds", confidence)


def _gap_equal_steps(tables: Tables, confidence: float) -> Estimate:
    """RL's sparsity minus that of SFT at its own rate, among runs of as many optimiser updates."""
    pairs = pair_sparsity(tables.table("tensor"))
    rl, other, told = of_equal_updates(rl_runs(pairs), sft_runs(pairs))
    if rl.empty:
        return missing(told, "seeds")
    return noted(t_estimate(seed_gap(rl, other), "seeds", confidence), told)


def _excess_over_noise(tables: Tables, confidence: float) -> Estimate:
    pairs = rl_runs(pair_sparsity(tables.table("tensor")))
    pairs = pairs.assign(excess=pairs["sparsity"] - pairs["sparsity_storage_norm"])
    by_seed = pairs.groupby(["seed", "algorithm"])["excess"].mean().groupby("seed").mean()
    return t_estimate(by_seed, "seeds", confidence)


def _precision_gap(tables: Tables, confidence: float) -> Estimate:
    tensor = tables.table("tensor")
    rl = rl_runs(tensor)
    if not rl.empty and (rl["stored_dtype_tuned"].dropna() == "BF16").all():
        return missing("the RL checkpoints were stored in bf16; what fp32 would show is lost")
    pairs = pair_sparsity(rl)
    by_pair = pairs.set_index("pair")
    gaps, unit = over_seeds(by_pair["sparsity"] - by_pair["sparsity_fp32"], pairs)
    return t_estimate(gaps, unit, confidence)


def _paper_level(tables: Tables, confidence: float) -> Estimate:
    tensor = tables.table("tensor")
    if "paper_sparsity" not in tensor.columns:
        return missing("none of the paper's own checkpoints is among the pairs", "pairs")
    rows = tensor[(tensor["method"] == "rl") & tensor["paper_sparsity"].notna()]
    return t_estimate(pair_sparsity(rows)["sparsity"], "pairs", confidence)


ESTIMATES: dict[str, Estimator] = {
    "sparsity_gap_own_lr": partial(_gap_to, "sft-teacher", "own"),
    "sparsity_gap_matched_lr": partial(_gap_to, "sft-teacher", "mask"),
    "sparsity_gap_same_style": partial(_gap_to, "sft-same-style", "mask"),
    "sparsity_gap_same_style_own_rate": partial(_gap_to, "sft-same-style", "own"),
    "sparsity_gap_rft": partial(_gap_to, "rft", "mask"),
    "sparsity_gap_equal_steps": _gap_equal_steps,
    "sparsity_gap_rl_rft": partial(_gap_to, "rft", "mask"),
    "sparsity_excess_over_equal_norm_noise": _excess_over_noise,
    "sparsity_level_of_paper_pairs": _paper_level,
    "precision_gap": _precision_gap,
}
