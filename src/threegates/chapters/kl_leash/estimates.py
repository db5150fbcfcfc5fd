"""Estimates of how far policies move in KL, and of the bounds on one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.intervals import Estimate, exponential, missing, noted, t_estimate
from threegates.estimates.rows import (
    Estimator,
    Tables,
    label,
    over_seeds,
    rft_runs,
    rl_runs,
    same_style_runs,
    sft_runs,
)

#: The KL term whose effect is looked at, by its labels, and the run without one.
WITH_TERM, WITHOUT_TERM = ("0.04", "k3"), "0"


def rl_log(log: pd.DataFrame) -> pd.DataFrame:
    """Rows of the RL runs at the rate of the reward curves, those with a KL term of another weight too."""
    return rl_runs(log, "reward")


def plain(log: pd.DataFrame) -> pd.DataFrame:
    """Of those, the runs whose algorithm has the KL term it comes with."""
    rows = rl_log(log)
    return rows[label(rows, "label_kl").isna()]


def small(log: pd.DataFrame) -> pd.DataFrame:
    """Rows of the same algorithms at the rate of the mask figures, whose updates are small."""
    rows = rl_runs(log, "mask")
    return rows[label(rows, "label_kl").isna()]


def with_weight(log: pd.DataFrame, weight: str, estimator: str | None = None) -> pd.DataFrame:
    """Rows of GRPO whose KL term has that weight, and was estimated so."""
    rows = rl_log(log)
    chosen = (label(rows, "label_kl") == weight) & (rows["algorithm"] == "grpo")
    return rows[chosen & (label(rows, "estimator") == estimator)] if estimator else rows[chosen]


def evaluations(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at which held-out prompts were answered, in the order of training, KL above zero."""
    return rows[rows["pass_at_1"].notna() & (rows["kl"] > 0)].sort_values(["run", "step"])


def ends(rows: pd.DataFrame) -> pd.DataFrame:
    """The last of them of every run."""
    return evaluations(rows).groupby("run").tail(1)


# --- bounds on one step


def steps(log: pd.DataFrame) -> pd.DataFrame:
    """RL's steps whose KL was measured: the log's rows, with whether it is at most tilt_kl.

    on_leash : by step_kl, a token; on_leash_response : by step_kl_response, in tilt_kl's own units.
    """
    rows = rl_log(log)
    rows = rows[rows["step_kl"].notna()]
    held = {"on_leash": "step_kl", "on_leash_response": "step_kl_response"}
    return rows.assign(**{name: rows[kl] <= rows["tilt_kl"] for name, kl in held.items()})


def bounded_steps(log: pd.DataFrame, fisher: pd.DataFrame) -> pd.DataFrame:
    """The same steps beside Prop. 3.2's bound of their norm: `bound`, `vacuous`, `holds`.

    bound = √(2K/μ), K = step_kl_response in nats a response and μ the least eigenvalue that is not zero of
    the base's empirical Fisher matrix, of responses' scores. It is vacuous where it exceeds the base's ‖W‖.

    **Source** Zhu et al. (2025), Proposition 3.2.
    """
    facts = fisher.drop_duplicates("base").set_index("base")
    rows = steps(log)
    least, norm = (rows["base"].map(facts[name]).astype(float) for name in ("smallest", "norm"))
    bound = np.sqrt(2 * rows["step_kl_response"] / least)
    return rows.assign(bound=bound, weights_norm=norm, vacuous=bound > norm, holds=rows["step_norm"] <= bound)


def _share_per_run(rows: pd.DataFrame, column: str, confidence: float) -> Estimate:
    shares, unit = over_seeds(rows.groupby("run")[column].mean(), rows, "run")
    return t_estimate(shares, unit, confidence)


_NO_MAXIMISER = "a step of an optimiser is not the exact maximiser that the proposition is about"


def _on_leash(tables: Tables, confidence: float) -> Estimate:
    rows = steps(tables.table("log"))
    if rows.empty:
        return missing("no step of RL whose KL was logged", "seeds")
    return replace(_share_per_run(rows, "on_leash_response", confidence), unmet=_NO_MAXIMISER)


def _fisher_bound(tables: Tables, confidence: float) -> Estimate:
    rows = bounded_steps(tables.table("log"), tables.table("fisher"))
    if rows.empty:
        return missing("no step of RL whose KL was logged", "seeds")
    telling = rows[~rows["vacuous"] & rows["bound"].notna()]
    if telling.empty:
        return missing("every bound is vacuous", "seeds")
    facts = tables.table("fisher").drop_duplicates("base")
    lacking = facts[facts["rank"] < facts["parameters"]]
    found = _share_per_run(telling, "holds", confidence)
    return replace(found, unmet=_no_least(lacking.iloc[0])) if len(lacking) else found


def _no_least(fisher: pd.Series) -> str:
    return (
        f"the Fisher matrix has rank {int(fisher['rank'])} in {int(fisher['parameters'])} parameters, so "
        "that no μ > 0 lies below all of its eigenvalues"
    )


# --- how far runs went


def _log_kl(rows: pd.DataFrame) -> pd.Series:
    """Per seed, log KL at the end, mean over algorithms."""
    last = ends(rows)
    return np.log(last["kl"]).groupby([last["seed"], last["algorithm"]]).mean().groupby("seed").mean()


def _ratio(over: pd.DataFrame, under: pd.DataFrame, absent: str, confidence: float) -> Estimate:
    """Geometric mean over seeds of KL at the end of one group of runs over KL at the end of another."""
    gaps = (_log_kl(over) - _log_kl(under)).dropna()
    return exponential(t_estimate(gaps, "seeds", confidence)) if len(gaps) else missing(absent, "seeds")


#: What ends beside RL at the rates that each learns at, in words.
_BESIDE: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "SFT": sft_runs,
    "SFT in the base's own style": partial(same_style_runs, rate="own"),
    "RFT": partial(rft_runs, rate="reward"),
}


def _over_rl(method: str, tables: Tables, confidence: float) -> Estimate:
    log = tables.table("log")
    return _ratio(_BESIDE[method](log), plain(log), f"no seed with runs of {method} and of RL", confidence)


def _beside_rl_at_mask_rate(
    group: Callable[[pd.DataFrame], pd.DataFrame], whose: str, tables: Tables, confidence: float
) -> Estimate:
    """A group's KL at the end over that of RL, both at the mask rate."""
    log = tables.table("log")
    return _ratio(
        group(log), small(log), f"no seed with runs of {whose} and of RL at the mask rate", confidence
    )


def _over_rl_equal_steps(tables: Tables, confidence: float) -> Estimate:
    """SFT's KL over RL's at the last step that both were evaluated at."""
    log = tables.table("log")
    sft, rl = evaluations(sft_runs(log)), evaluations(plain(log))
    common = sorted(set(sft["step"]) & set(rl["step"]))
    if not common:
        return missing("SFT and RL were evaluated after no number of steps in common", "seeds")
    at = [rows[rows["step"] == common[-1]] for rows in (sft, rl)]
    found = _ratio(at[0], at[1], "no seed with runs of SFT and of RL", confidence)
    return noted(found, f"after {common[-1]} steps each") if found.has_interval else found


def _without_term(tables: Tables, confidence: float) -> Estimate:
    log = tables.table("log")
    absent = "no seed with runs of GRPO without a KL term and with one"
    return _ratio(with_weight(log, WITHOUT_TERM), with_weight(log, *WITH_TERM), absent, confidence)


def at_norm(run: pd.DataFrame, norm: float) -> float:
    """KL of a run when its ‖ΔW‖ first reached that norm: log KL linear in log ‖ΔW‖ between evaluations.

    run : evaluations of one run, in their order. NaN where the norm lies outside what was evaluated.
    """
    further = run[run["delta_norm"] > run["delta_norm"].cummax().shift(fill_value=0.0)]
    norms = further["delta_norm"]
    if further.empty or not norms.iloc[0] <= norm <= norms.iloc[-1]:
        return math.nan
    return float(np.exp(np.interp(math.log(norm), np.log(norms), np.log(further["kl"]))))


def equal_norm(rl: pd.DataFrame, sft: pd.DataFrame) -> pd.DataFrame:
    """Runs of SFT beside each run of RL of their seed, at the largest ‖ΔW‖ that both reach.

    Columns: seed, algorithm, norm, kl (RL's), kl_sft, ratio, first_sft (‖ΔW‖ at SFT's first evaluation). The
    ratio is NaN where the two were evaluated at no norm in common.
    """
    rows, beside = [], evaluations(sft)
    for _, own in evaluations(rl).groupby("run", sort=False):
        for _, other in beside[beside["seed"] == own["seed"].iloc[0]].groupby("run", sort=False):
            norm = min(own["delta_norm"].max(), other["delta_norm"].max())
            found = {"kl": at_norm(own, norm), "kl_sft": at_norm(other, norm)}
            place = {"seed": own["seed"].iloc[0], "algorithm": own["algorithm"].iloc[0], "norm": norm}
            first = {"first_sft": other["delta_norm"].iloc[0]}
            rows.append({**place, **found, **first, "ratio": found["kl_sft"] / found["kl"]})
    columns = ["seed", "algorithm", "norm", "kl", "kl_sft", "first_sft", "ratio"]
    return pd.DataFrame(rows, columns=columns)


def _over_rl_equal_norm(tables: Tables, confidence: float) -> Estimate:
    log = tables.table("log")
    rows = equal_norm(plain(log), sft_runs(log))
    if rows.empty:
        return missing("no seed with runs of SFT and of RL", "seeds")
    # A seed counts with all of its algorithms or not at all.
    ratios = rows["ratio"].astype(float).map(math.log, na_action="ignore")
    logs = ratios.groupby(rows["seed"]).agg(lambda x: x.mean(skipna=False))
    found = t_estimate(logs.dropna(), "seeds", confidence)
    if not found.n:
        return missing("no run of SFT and of RL was evaluated at a norm in common", "seeds")
    return exponential(found)


ESTIMATES: dict[str, Estimator] = {
    "leash_of_one_step_holds_response": _on_leash,
    "fisher_norm_bound_holds": _fisher_bound,
    "kl_sft_over_rl": partial(_over_rl, "SFT"),
    "kl_sft_over_rl_equal_norm": _over_rl_equal_norm,
    "kl_sft_over_rl_equal_steps": _over_rl_equal_steps,
    "kl_sft_over_rl_equal_rate": partial(_beside_rl_at_mask_rate, partial(sft_runs, rate="mask"), "SFT"),
    "kl_same_style_over_rl": partial(_over_rl, "SFT in the base's own style"),
    "kl_same_style_over_rl_equal_rate": partial(
        _beside_rl_at_mask_rate, same_style_runs, "SFT in the base's own style"
    ),
    "kl_rft_over_rl": partial(_over_rl, "RFT"),
    "kl_without_over_with_term": _without_term,
}
