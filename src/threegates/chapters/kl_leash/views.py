"""Tidy frames of the chapter on the KL leash: what is drawn, computed from its tables and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from threegates.chapters.kl_leash.estimates import (
    bounded_steps,
    ends,
    equal_norm,
    plain,
    rl_log,
    small,
    steps,
    with_weight,
)
from threegates.estimates.intervals import exponential, t_estimate
from threegates.estimates.rows import rft_runs, same_style_runs, sft_runs
from threegates.figures.names import method_name
from threegates.figures.numbers import span

#: Estimators of KL by their columns in the log.
ESTIMATORS = {"kl_k1": "k1", "kl_k2": "k2", "kl": "k3"}
#: What is followed of one step, by its column in the log.
STEP_MEASURES = {
    "tilt_kl": "bound: tilted target, a response",
    "step_kl_response": "the step, a response",
    "step_kl": "the step, a token",
}
#: A bound is called loose from here on: this many times what it bounds.
LOOSE = 10.0
_PLAIN_TERM = "as the algorithm comes"
_COURSE = ["method", "kind", "rate", "run", "seed", "step", "updates", "kl", "delta_norm", "pass_at_1"]
_ORDER = {name: place for place, name in enumerate(("GRPO", "DAPO", "REINFORCE++", "RFT"))}


def geometric(values: Iterable[float], confidence: float = 0.95) -> dict[str, float]:
    """Geometric mean of positive values with its t interval: value, low, high, seeds; others are left out."""
    logs = [math.log(value) for value in values if value > 0]
    found = exponential(t_estimate(logs, "seeds", confidence))
    return {"value": found.value, "low": found.low, "high": found.high, "seeds": found.n}


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive values."""
    return geometric(values)["value"]


def over_seeds(frame: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """Geometric means of a column over the seeds of each group: the keys, value, low, high, seeds."""
    rows: list[dict[str, Any]] = []
    for key, own in frame.groupby(list(keys), sort=False):
        rows.append({**dict(zip(keys, key, strict=True)), **geometric(own[column])})
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "seeds"])


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the names of their methods, RL's first and in one order everywhere."""
    named = rows.assign(method=rows["algorithm"].map(method_name), kind=rows["method"])
    order = ["method", "run", "step"]
    return named.sort_values(order, key=lambda c: c.map(_ORDER).fillna(9) if c.name == "method" else c)


def course_view(log: pd.DataFrame) -> pd.DataFrame:
    """Wherever KL to the base was logged, of RL, RFT and SFT: one row a run and step.

    Columns: method, kind (rl, rft or sft), run, seed, step, updates, kl, delta_norm, pass_at_1. At
    evaluations KL is measured on held-out prompts, after the step. At all other steps RL alone logs it, on
    that step's samples. RL's runs with KL terms of other weights are left out.
    """
    rows = pd.concat([plain(log), rft_runs(log, "reward"), sft_runs(log), same_style_runs(log, "own")])
    return _named(rows[rows["kl"] > 0])[_COURSE].reset_index(drop=True)


def norm_view(log: pd.DataFrame) -> pd.DataFrame:
    """The same at evaluations alone, where all methods are looked at alike, and at the mask rate too."""
    sft = [of(log, rate) for of in (sft_runs, same_style_runs) for rate in ("own", "mask")]
    rows = pd.concat([plain(log), small(log), rft_runs(log, "reward"), *sft])
    return _named(rows[(rows["kl"] > 0) & rows["pass_at_1"].notna()])[_COURSE].reset_index(drop=True)


def end_summary(log: pd.DataFrame) -> pd.DataFrame:
    """Where each method's runs end: KL with its interval over seeds, means of ‖ΔW‖, pass@1 and updates."""
    rows = []
    course = course_view(log)
    last = course[course["pass_at_1"].notna()].groupby("run", sort=False).tail(1)
    for method, own in last.groupby("method", sort=False):
        means = own[["delta_norm", "pass_at_1", "updates"]].astype(float).mean()
        rows.append({"method": method, **geometric(own["kl"]), **means})
    return pd.DataFrame(rows)


def shown_ends(summary: pd.DataFrame) -> pd.DataFrame:
    """That summary under the names that a reader knows."""
    names = {"value": "KL to base", "delta_norm": "‖ΔW‖", "pass_at_1": "pass@1"}
    columns = ["method", "seeds", "value", "low", "high", "delta_norm", "pass_at_1", "updates"]
    return summary[columns].rename(columns=names)


_Rows = Callable[[pd.DataFrame], pd.DataFrame]
#: Groups of runs that are set beside each other at equal norm: name, RL's rows and SFT's of a log.
_MATCHED: dict[str, tuple[_Rows, _Rows]] = {
    "each at its own rate": (plain, sft_runs),
    "both at the mask rate": (small, partial(sft_runs, rate="mask")),
    "in the base's own style": (plain, partial(same_style_runs, rate="own")),
}


def matched_view(log: pd.DataFrame) -> pd.DataFrame:
    """SFT beside RL at the largest ‖ΔW‖ that both reach: `estimates.equal_norm`'s, with group and method."""
    rows = [equal_norm(rl(log), sft(log)).assign(group=name) for name, (rl, sft) in _MATCHED.items()]
    found = pd.concat([one for one in rows if len(one)] or rows[:1], ignore_index=True)
    return found.assign(method=found["algorithm"].map(method_name))


def matched_summary(matched: pd.DataFrame) -> pd.DataFrame:
    """Of each group: how many pairs of runs, how many of them can be compared, at which norms, and the ratio.

    Columns: runs, pairs, compared, norm (from, to), KL of SFT over RL's with its 95 % interval over seeds.
    """
    rows = []
    for name, own in matched.groupby("group", sort=False):
        known = own.dropna(subset="ratio")
        by_seed = [geometric_mean(one["ratio"]) for _, one in known.groupby("seed")]
        norms = span(known["norm"]) if len(known) else ""
        facts = {"runs": name, "pairs": len(own), "compared": len(known), "at ‖ΔW‖": norms}
        rows.append({**facts, "SFT / RL": math.nan, "low": math.nan, "high": math.nan})
        if by_seed:
            ratio = geometric(by_seed)
            rows[-1] |= {"SFT / RL": ratio["value"], "low": ratio["low"], "high": ratio["high"]}
    return pd.DataFrame(rows)


# --- with and without a KL term


def term_view(log: pd.DataFrame) -> pd.DataFrame:
    """GRPO by its KL term, at every step: term (none first), run, seed, step, updates, kl, pass_at_1."""
    own = plain(log)
    kinds = {_PLAIN_TERM: own[own["algorithm"] == "grpo"]}
    weighted = rl_log(log)
    weighted = weighted[weighted["label_kl"].notna()] if "label_kl" in weighted else weighted.iloc[:0]
    for weight in sorted(weighted["label_kl"].unique(), key=float) if len(weighted) else ():
        chosen = with_weight(log, weight)
        estimators = list(chosen["estimator"].dropna().unique()) if float(weight) else [None]
        for one in sorted(estimators, key=str):
            kinds[f"weight {weight}, {one}" if one else "no KL term"] = with_weight(log, weight, one)
    order = sorted(kinds, key=lambda name: (name != "no KL term", name != _PLAIN_TERM, name))
    columns = ["run", "seed", "step", "updates", "kl", "pass_at_1"]
    frames = [kinds[name][kinds[name]["kl"] > 0][columns].assign(term=name) for name in order]
    return pd.concat(frames, ignore_index=True)


def term_ratios(log: pd.DataFrame) -> pd.DataFrame:
    """Per seed, KL at the end of GRPO without a KL term over that with one, by term: term, seed, ratio."""
    last = term_view(log).sort_values("step")
    last = last[last["pass_at_1"].notna()].groupby(["term", "run"], sort=False).tail(1)
    without = last[last["term"] == "no KL term"].set_index("seed")["kl"]
    rest = last[last["term"] != "no KL term"]
    ratio = rest["seed"].map(without).astype(float) / rest["kl"]
    view = rest.assign(ratio=ratio)[["term", "seed", "ratio"]]
    return view.dropna(subset="ratio").reset_index(drop=True)


# --- one step


def step_view(log: pd.DataFrame) -> pd.DataFrame:
    """One step of plain RL beside its bound, over training: geometric means over seeds.

    Columns: method, updates, value, low, high, seeds, and measure, one of `STEP_MEASURES`.
    """
    rows = _named(steps(plain(log)))
    frames = [
        over_seeds(rows, ["method", "updates"], column).assign(measure=name)
        for column, name in STEP_MEASURES.items()
    ]
    return pd.concat(frames, ignore_index=True)


def slack(log: pd.DataFrame) -> pd.Series:
    """Over all steps of RL: number, shares on the leash and slack by token and response, share loose."""
    rows = steps(log)
    token, response = rows["tilt_kl"] / rows["step_kl"], rows["tilt_kl"] / rows["step_kl_response"]
    return pd.Series(
        {
            "steps": len(rows),
            "token": (token >= 1).mean(),
            "response": (response >= 1).mean(),
            "ratio_token": token.median(),
            "ratio_response": response.median(),
            "least_token": token.min(),
            "least_response": response.min(),
            "loose": (token >= LOOSE).mean(),
        }
    )


def bound_view(log: pd.DataFrame, fisher: pd.DataFrame) -> pd.DataFrame:
    """Norm of every step of RL beside its Fisher bound: `estimates.bounded_steps` with `method`."""
    rows = _named(bounded_steps(log, fisher))
    columns = ["method", "run", "seed", "step", "step_norm", "bound", "weights_norm", "vacuous", "holds"]
    return rows[columns].reset_index(drop=True)


# --- estimators


def estimator_view(log: pd.DataFrame) -> pd.DataFrame:
    """KL at the end of each run by k1, which may be negative, k2 and k3: method, run, seed, estimator, kl."""
    last = _named(ends(pd.concat([plain(log), rft_runs(log, "reward"), sft_runs(log)])))
    frames = [
        last[["method", "run", "seed"]].assign(estimator=name, kl=last[column])
        for column, name in ESTIMATORS.items()
    ]
    return pd.concat(frames, ignore_index=True)


def estimator_spread(view: pd.DataFrame) -> pd.DataFrame:
    """By method, largest over smallest of the three means, NaN if one is not positive: method, spread."""
    wide = view.groupby(["method", "estimator"], sort=False)["kl"].mean().unstack()
    spread = (wide.max(axis=1) / wide.min(axis=1)).where(wide.min(axis=1) > 0, np.nan)
    return spread.rename("spread").reset_index()


def counts(log: pd.DataFrame) -> pd.Series:
    """How many runs are looked at, by what: rl (with any KL term), rft, sft, and seeds of all."""
    groups = {"rl": rl_log(log), "rft": rft_runs(log, "reward"), "sft": sft_runs(log)}
    seeds = pd.concat(list(groups.values()))["seed"].nunique()
    return pd.Series({name: rows["run"].nunique() for name, rows in groups.items()} | {"seeds": seeds})
