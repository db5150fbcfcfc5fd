"""Estimates of what adapters of different starts learn, and when they collapse."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.accuracy import (
    HEADLINE_SHARE,
    base_accuracy,
    best_at_an_edge,
    final_accuracy,
    paired_gap,
    told_of_edges,
)
from threegates.estimates.intervals import Estimate, exponential, missing, noted, t_estimate
from threegates.estimates.rows import Estimator, Tables, with_labels

#: Token KL to the base, in nats, above which a run has collapsed. Fixed before the result of any adapter of
#: the study was looked at: healthy runs of the lab stay below .2, and at .5 the policy gives its own tokens
#: e^.5 = 1.6 times the base's probability (geometric mean), while the base is sure of most tokens.
COLLAPSE_KL = 0.5
#: Start of a run that trains the weights themselves: the dense arm of sparse fine-tuning.
FULL = "full"
#: The algorithm whose runs the estimates compare; under others there are fewer starts and rates.
JUDGED = "grpo"
_COLUMNS = ["run", "seed", "method", "algorithm", "init", "rank", "rate", "learning_rate"]
NEITHER = "neither start collapsed at any rate of the grid"
_NO_RUNS = "no RL runs of LoRA and PiSSA of one rank and seed"


def collapsed(run_log: pd.DataFrame, final_pass: float, base_pass: float) -> bool:
    """Whether a run has collapsed: its last token KL is above `COLLAPSE_KL`, or it ends below the base.

    Parameters
    ----------
    run_log : a run's log, `step`, `pass_at_1` (missing between evaluations) and `kl` in nats a token.
    final_pass, base_pass : pass@1 of the run's and of the base's final evaluation, on the same prompts; with
        no base (NaN) the KL alone decides.

    A KL that is not a number has diverged, and counts as above the threshold.
    """
    evaluated = run_log[run_log["pass_at_1"].notna()].sort_values("step")
    last = float(evaluated["kl"].iloc[-1]) if len(evaluated) else math.nan
    return not last <= COLLAPSE_KL or final_pass < base_pass


def adapter_runs(evaluation: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """One row a run with an adapter, and a run that trains all linear weights in full.

    Columns: run, seed, method, algorithm, init (of the adapter, or "full"), rank (missing of "full"), rate,
    learning_rate, pass_at_1 (final), kl and delta_norm (‖ΔW‖_F over all adapted matrices) at the end,
    collapsed.
    """
    runs = with_labels(final_accuracy(evaluation), "init", "rank", "mask", "share")
    dense = (runs["mask"] == "dense") & (runs["share"] == HEADLINE_SHARE)
    runs = runs.assign(init=runs["init"].mask(dense, FULL), rank=pd.to_numeric(runs["rank"]).astype("Int64"))
    runs = runs.loc[runs["init"].notna(), [*_COLUMNS, "pass_at_1"]]
    base = base_accuracy(evaluation)
    logs = dict(iter(log[log["pass_at_1"].notna()].sort_values("step").groupby("run")))
    passed = zip(runs["run"], runs["pass_at_1"], strict=True)
    ends = [_end(logs.get(run, log.iloc[:0]), final, base) for run, final in passed]
    columns = ["kl", "delta_norm", "collapsed"]
    found = runs.join(pd.DataFrame(ends, columns=columns, index=runs.index))
    return found.sort_values(["init", "rank", "learning_rate", "seed"]).reset_index(drop=True)


def _end(run_log: pd.DataFrame, final: float, base: float) -> tuple[float, float, bool]:
    last = run_log.iloc[-1] if len(run_log) else {"kl": math.nan, "delta_norm": math.nan}
    return float(last["kl"]), float(last["delta_norm"]), collapsed(run_log, final, base)


def best_by_rank(runs: pd.DataFrame) -> pd.DataFrame:
    """Best pass@1 of GRPO over the grid of rates: one row a seed and rank, one column a start."""
    known = runs[(runs["algorithm"] == JUDGED) & runs["rank"].notna()]
    return known.pivot_table(index=["seed", "rank"], columns="init", values="pass_at_1", aggfunc="max")


def collapses(runs: pd.DataFrame, one: str = "lora", other: str = "pissa") -> pd.DataFrame:
    """Where the first start collapses over where the second does: one row a seed and rank.

    Columns: seed, rank, log_rate, log_norm (log ratios of the smallest learning rate at which each has
    collapsed, and of ‖ΔW‖ at the end of that run), least and most (between which the grid leaves log_norm: a
    start collapses somewhere between its last healthy norm and the first collapsed one), which ("both",
    "neither", or the start that did).

    Where only one has collapsed, the rates count as one step of the grid apart, the least that can be said,
    and where neither has, log_rate is 0. Norms are compared where both have, and are NaN elsewhere.
    """
    known = runs[(runs["algorithm"] == JUDGED) & runs["init"].isin([one, other])]
    rows = []
    for (seed, rank), own in known.groupby(["seed", "rank"]):
        if own["init"].nunique() == 2:
            pair = [own[own["init"] == init].sort_values("learning_rate") for init in (one, other)]
            rows.append({"seed": seed, "rank": rank, **_collapse(pair[0], pair[1], (one, other))})
    return pd.DataFrame(rows, columns=["seed", "rank", "log_rate", "log_norm", "least", "most", "which"])


def _collapse(one: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]) -> dict:
    first = [runs[runs["collapsed"]].head(1) for runs in (one, other)]
    did = [len(found) > 0 for found in first]
    if not any(did):
        return {"log_rate": 0.0, "which": "neither"}
    if not all(did):
        # The grid is never left: a start that did not collapse on it might have far above it.
        log_rate = _grid_step(pd.concat([one, other])["learning_rate"]) * (-1 if did[0] else 1)
        return {"log_rate": log_rate, "which": names[0 if did[0] else 1]}
    rates = [float(found["learning_rate"].iloc[0]) for found in first]
    norms = [math.log(found["delta_norm"].iloc[0]) for found in first]
    below = [_healthy(runs, norm) for runs, norm in zip((one, other), norms, strict=True)]
    apart = {"log_rate": math.log(rates[0] / rates[1]), "log_norm": norms[0] - norms[1]}
    return {**apart, "least": below[0] - norms[1], "most": norms[0] - below[1], "which": "both"}


def _healthy(runs: pd.DataFrame, norm: float) -> float:
    """Log of the largest ‖ΔW‖ of a healthy run up to a norm, itself a logarithm; −∞ where there is none."""
    logs = np.log(runs.loc[~runs["collapsed"], "delta_norm"])
    return float(logs[logs <= norm].max()) if (logs <= norm).any() else -math.inf


def _grid_step(rates: pd.Series) -> float:
    """Mean log ratio of neighbouring rates; NaN of a grid of one."""
    grid = np.sort(rates.unique())
    return math.log(grid[-1] / grid[0]) / (len(grid) - 1) if len(grid) > 1 else math.nan


def _runs(tables: Tables) -> pd.DataFrame:
    return adapter_runs(tables.table("evaluation"), tables.table("log"))


def _inside(gap: Estimate, runs: pd.DataFrame, arm: list[str]) -> Estimate:
    """A gap between best cells, or why it is not judged."""
    edges = best_at_an_edge(runs, arm)
    return (
        missing(told_of_edges(edges, runs["learning_rate"].nunique()), "seeds")
        if edges and gap.has_interval
        else gap
    )


def _best_gap(plus: str, minus: str, tables: Tables, confidence: float) -> Estimate:
    runs = _runs(tables)
    best = best_by_rank(runs)
    known = [start for start in (plus, minus) if start in best]
    # A rank that one start lacks must not weigh on the other alone.
    both = best[known].dropna()
    gap = paired_gap(both.groupby("seed").mean(), plus, minus, "of adapters that start as", confidence)
    ranks = both.index.get_level_values("rank").unique()
    judged = (runs["algorithm"] == JUDGED) & runs["init"].isin([plus, minus]) & runs["rank"].isin(ranks)
    return _inside(gap, runs[judged], ["init", "rank"])


def _lora_minus_full(tables: Tables, confidence: float) -> Estimate:
    runs = _runs(tables)
    runs = runs[runs["algorithm"] == JUDGED]
    lora = runs[runs["init"] == "lora"]
    chosen = pd.concat([lora[lora["rank"] == lora["rank"].max()], runs[runs["init"] == FULL]])
    best = chosen.pivot_table(index="seed", columns="init", values="pass_at_1", aggfunc="max")
    gap = paired_gap(best, "lora", FULL, "of adapters, or in full:", confidence)
    rates = chosen.groupby("init")["rate"].nunique()
    told = f"LoRA of rank {lora['rank'].max()} at the best of {rates.get('lora')} learning rates, in full"
    gap = noted(gap, f"{told} of {rates.get(FULL)}") if gap.has_interval else gap
    return _inside(gap, chosen, ["init"])


def norm_bounds(found: pd.DataFrame) -> tuple[float, float]:
    """Between which the grid of rates leaves the ratio of norms at collapse: means of `collapses`."""
    both = found[found["which"] == "both"]
    ends = both.groupby("seed")[["least", "most"]].mean().mean()
    return math.exp(ends["least"]), math.exp(ends["most"])


def _collapse_rate(tables: Tables, confidence: float) -> Estimate:
    found = collapses(_runs(tables))
    if found.empty:
        return missing(_NO_RUNS, "seeds")
    ratio = exponential(t_estimate(found.groupby("seed")["log_rate"].mean(), "seeds", confidence))
    if (found["which"] != "neither").any():
        return ratio
    return replace(ratio, reason="; ".join(filter(None, [NEITHER, ratio.reason])))


def _collapse_norm(tables: Tables, confidence: float) -> Estimate:
    found = collapses(_runs(tables))
    if found.empty:
        return missing(_NO_RUNS, "seeds")
    if not (found["which"] == "both").any():
        which = sorted(set(found["which"]) - {"neither"})
        alone = f"{' or '.join(which)} alone collapsed on the grid, and a norm of the other is only a bound"
        return missing(alone if which else NEITHER, "seeds")
    logs = found.groupby("seed")["log_norm"].mean().dropna()
    ratio = exponential(t_estimate(logs, "seeds", confidence))
    least, most = norm_bounds(found)
    told = f"the grid of rates leaves it anything {between(least, most)}"
    if least <= 1 <= most:
        # On which side of one it lies is open, however narrow the interval over seeds.
        return missing(told, "seeds")
    return noted(ratio, told)


def between(least: float, most: float) -> str:
    """Two bounds in words; one that is nowhere is left out."""
    if math.isinf(most):
        return f"above {least:.2g}"
    return f"between {least:.2g} and {most:.2g}" if least > 0 else f"below {most:.2g}"


ESTIMATES: dict[str, Estimator] = {
    "best_lora_minus_pissa": partial(_best_gap, "lora", "pissa"),
    "best_lora_minus_milora": partial(_best_gap, "lora", "milora"),
    "best_lora_minus_full": _lora_minus_full,
    "collapse_rate_lora_over_pissa": _collapse_rate,
    "collapse_norm_lora_over_pissa": _collapse_norm,
}
