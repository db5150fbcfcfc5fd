"""Tidy frames for the figures: what is drawn, computed from a chapter's tables and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from threegates.chapters.stripe_masks.estimates import excess_spread
from threegates.chapters.stripe_masks.plots import ROLES
from threegates.estimates.intervals import t_estimate
from threegates.estimates.rows import LINEAR, pair_sparsity
from threegates.figures.style import colour
from threegates.measures.agreement import consensus_map

#: Names on the page of the algorithms in the manifest.
METHODS = {
    "pretraining": "pre-training",
    "sft-teacher": "SFT (teacher)",
    "cross-entropy": "SFT (cross-entropy)",
    "sft-same-style": "SFT (same style)",
    "rft": "RFT",
    "grpo": "GRPO",
    "dapo": "DAPO",
    "reinforce++": "REINFORCE++",
}
DRAWN_NULLS = ("storage_density", "storage_norm", "magnitude")


def method_name(algorithm: Any) -> str:
    """Name on the page of an algorithm; one the study does not know keeps its own."""
    if pd.isna(algorithm):
        return "your pair"
    return METHODS.get(str(algorithm).lower(), str(algorithm))


def group_label(name: str, rate: float, pair: str) -> str:
    """Label of a method at a learning rate; of a pair that stands for itself its name."""
    if name == pair:
        return pair
    return f"{name}, lr {rate:.0e}" if rate == rate else f"{name}, {pair}"


def run_labels(frame: pd.DataFrame) -> dict[str, str]:
    """Label of each pair or run by its name: method, data, seed, and the name where that is not unique.

    Pairs that a reader has chosen go by their names.
    """
    if "alone" in frame:
        return {pair: pair for pair in dict.fromkeys(frame["pair"])}
    rows = frame.drop_duplicates("pair").to_dict("records")
    labels = {row["pair"]: f"{method_name(row['algorithm'])} · {row['data']} · {row['seed']}" for row in rows}
    taken = Counter(labels.values())
    return {pair: label if taken[label] == 1 else f"{label} · {pair}" for pair, label in labels.items()}


def run_colours(frame: pd.DataFrame) -> dict[str, str]:
    """Colour of each run's method by the run's label, RL first, in the order of the figures."""
    order = {"rl": 0, "rft": 1, "sft": 2}
    rows = frame.drop_duplicates("pair").sort_values("method", key=lambda m: m.map(order), kind="stable")
    labels = run_labels(rows)
    return {labels[row["pair"]]: colour(method_name(row["algorithm"])) for row in rows.to_dict("records")}


def head_size(config: Mapping[str, Any]) -> int | None:
    """Rows of one attention head in Q, K and V, by a checkpoint's config.json; None where it has no heads."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if width and heads else None


def sparsity_view(tensor: pd.DataFrame) -> pd.DataFrame:
    """Whole-model sparsities, one row a pair, with the label of method and learning rate."""
    pairs = pair_sparsity(tensor)
    names = pairs["algorithm"].map(method_name)
    labels = [group_label(*facts) for facts in zip(names, pairs["learning_rate"], pairs["pair"], strict=True)]
    view = pairs.assign(method=names, label=labels, order=method_order(pairs))
    return view.sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)


def method_order(pairs: pd.DataFrame) -> pd.Series:
    """RL first, then what is on-policy, then the teacher; the smaller learning rate first."""
    place = {name: number for number, name in enumerate(reversed(METHODS))}
    return pairs["algorithm"].map(place).fillna(len(place)) + pairs["learning_rate"].fillna(0)


def sparsity_summary(view: pd.DataFrame) -> pd.DataFrame:
    """Mean sparsity of each method and rate with its t interval over seeds: one row a label."""
    rows = []
    for label, group in view.groupby("label", sort=False):
        found = t_estimate(group["sparsity"], "seeds", 0.95)
        rows.append(
            {
                "method": label,
                "seeds": found.n,
                "bf16": found.value,
                "low": found.low,
                "high": found.high,
                "linear layers": group["linear_sparsity"].mean(),
                "fp32": group["sparsity_fp32"].mean(),
                "noise of equal norm": group["sparsity_storage_norm"].mean(),
            }
        )
    return pd.DataFrame(rows)


def consensus_view(
    maps: pd.DataFrame, method: str = "rl", kinds: tuple[str, ...] = ("observed", "storage_density")
) -> pd.DataFrame:
    """Consensus maps of the shown block as arrays: one row a matrix and kind.

    Each array has `rows` × `columns` shares; where `block` exceeds one, each is of that many entries squared.
    """
    shown = maps["role"].isin(["q", "k", "v", "o", "down"]) & maps["kind"].isin(kinds)
    rows = maps[shown & (maps["method"] == method)]
    arrays = [consensus_map(row) for _, row in rows.iterrows()]
    return rows.assign(consensus=pd.Series(arrays, index=rows.index, dtype=object)).reset_index(drop=True)


def jaccard_view(agreement: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean Jaccard and Bernoulli expectation of every pair of runs over all linear matrices, labelled."""
    rows = agreement[agreement["role"].isin(LINEAR)]
    means = rows.groupby(["method", "run_a", "run_b"], sort=False)[["jaccard", "bernoulli"]].mean()
    labels = run_labels(frame)
    view = means.reset_index()
    return view.assign(run_a=view["run_a"].map(labels), run_b=view["run_b"].map(labels))


def baseline_view(agreement: pd.DataFrame) -> pd.DataFrame:
    """Mean Jaccard of each matrix type beside its four baselines, RL and SFT runs apart.

    `jaccard_low` and `jaccard_high` are the smallest and largest mean over the pairs of one run.
    """
    names = {"rl": "RL runs", "sft": "SFT runs", "rft": "RFT runs"}
    rows = agreement[agreement["role"].isin(LINEAR)]
    out = []
    for (method, role), group in rows.groupby(["method", "role"], sort=False):
        long = pd.concat([group.assign(run=group["run_a"]), group.assign(run=group["run_b"])])
        per_run = long.groupby("run")["jaccard"].mean()
        ends = (("", "_mean"), ("_low", "_low"), ("_high", "_high"))
        nulls = {f"{n}{end}": group[f"{n}{source}"].mean() for n in DRAWN_NULLS for end, source in ends}
        facts = {
            "group": names.get(str(method), str(method)),
            "role": role,
            "jaccard": group["jaccard"].mean(),
        }
        spread = {"jaccard_low": per_run.min(), "jaccard_high": per_run.max()}
        out.append(facts | spread | {"bernoulli": group["bernoulli"].mean()} | nulls)
    return pd.DataFrame(out)


def rates_view(rates: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean Spearman correlation of row and of column ratios for every pair of runs, labelled."""
    rows = rates[rates["role"].isin(LINEAR)]
    means = rows.groupby(["run_a", "run_b", "axis"], sort=False)["spearman"].mean().reset_index()
    labels = run_labels(frame)
    return means.assign(run_a=means["run_a"].map(labels), run_b=means["run_b"].map(labels))


def stripe_view(axis: pd.DataFrame, method: str = "rl") -> pd.DataFrame:
    """Dispersion of row and column ratios of each matrix type beside the nulls', geometric means."""
    rows = axis[(axis["method"] == method) & axis["role"].isin(list(ROLES))]
    columns = ["dispersion", "bernoulli_mean", *(f"{null}_mean" for null in DRAWN_NULLS)]
    logs = rows[["role", "axis"]].join(rows[columns].clip(lower=1e-6).apply(np.log))
    means = logs.groupby(["role", "axis"])[columns].mean().apply(np.exp).reset_index()
    order = {role: number for number, role in enumerate(ROLES)}
    return means.sort_values(["role", "axis"], key=lambda c: c.map(order) if c.name == "role" else c)


def stripes_by_pair(axis: pd.DataFrame) -> pd.DataFrame:
    """Dispersion of each pair's row and column ratios beside storage null 1a's, geometric means over blocks.

    Columns: pair, role, axis, dispersion, storage_density_mean.
    """
    parts = [
        stripe_view(own.assign(method=""), "").assign(pair=pair)
        for pair, own in axis.groupby("pair", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)[["pair", "role", "axis", "dispersion", "storage_density_mean"]]


def ratio_view(emergence: pd.DataFrame, layer: int, run: str) -> pd.DataFrame:
    """Row ratios of Q, K, V and column ratios of O of one block and run at every kept step."""
    along = np.where(emergence["role"] == "o", "column", "row")
    keep = (
        (emergence["run"] == run)
        & (emergence["layer"] == layer)
        & (emergence["axis"] == along)
        & emergence["role"].isin(["q", "k", "v", "o"])
    )
    return emergence[keep].reset_index(drop=True)


def correlation_view(emergence: pd.DataFrame) -> pd.DataFrame:
    """Correlation with the final ratios at every earlier step, mean over blocks, beside the walk's."""
    along = np.where(emergence["role"] == "o", "column", "row")
    rows = emergence[(emergence["axis"] == along) & emergence["role"].isin(["q", "k", "v", "o"])]
    last = rows.groupby("run")["step"].transform("max")
    walk = ["storage_path_mean", "storage_path_low", "storage_path_high"]
    means = rows[rows["step"] < last].groupby(["role", "run", "step"], sort=False)
    view = means[["spearman_with_final", *walk]].mean().reset_index()
    return view.rename(columns={"spearman_with_final": "spearman"})


def learning_view(log: pd.DataFrame) -> pd.DataFrame:
    """Training logs of the reward-curve runs, with the names of their methods."""
    rows = log[log["rate"] == "reward"]
    return rows.assign(method=rows["algorithm"].map(method_name)).reset_index(drop=True)


def pass_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """pass@1 and pass@k of every evaluated checkpoint on held-out prompts, with 95 % intervals.

    pass@1 is the mean share of right samples over prompts with Student's interval over prompts; pass@k the
    share of prompts with any right sample, with Wilson's interval.

    **Source** Student (1908); Wilson (1927).
    """
    rows = [
        row for run, group in evaluation.groupby("run", sort=False) for row in _pass_rows(str(run), group)
    ]
    return pd.DataFrame(rows)


def _pass_rows(run: str, group: pd.DataFrame) -> list[dict[str, Any]]:
    """Both pass rates of one evaluated checkpoint."""
    first, prompts = group.iloc[0], len(group)
    base = pd.isna(first["algorithm"])
    method = METHODS["pretraining"] if base else method_name(first["algorithm"])
    facts = {"run": run, "label": "base" if base else f"{method} · {first['seed']}", "method": method}
    one = t_estimate(group["correct"] / group["samples"], "prompts", 0.95)
    hits = int((group["correct"] > 0).sum())
    any_right = stats.binomtest(hits, prompts).proportion_ci(0.95, "wilson")
    measured = {
        "pass@1": (one.value, one.low, one.high),
        f"pass@{int(group['samples'].max())}": (hits / prompts, any_right.low, any_right.high),
    }
    return [
        {**facts, "measure": name, "value": value, "low": low, "high": high, "prompts": prompts}
        for name, (value, low, high) in measured.items()
    ]


def gain_view(evaluation: pd.DataFrame) -> pd.DataFrame:
    """What each algorithm adds to the base's pass@1 on the same prompts, with its t interval over seeds."""
    shares = evaluation.assign(share=evaluation["correct"] / evaluation["samples"])
    per_run = shares.groupby("run", sort=False).agg(share=("share", "mean"), algorithm=("algorithm", "first"))
    base = per_run.loc[per_run["algorithm"].isna(), "share"].iloc[0]
    tuned = per_run[per_run["algorithm"].notna()]
    rows = []
    for algorithm, group in tuned.groupby("algorithm", sort=False):
        found = t_estimate(group["share"] - base, "seeds", 0.95)
        gain = {"gain": found.value, "low": found.low, "high": found.high, "seeds": found.n}
        rows.append({"method": method_name(algorithm), **gain})
    return pd.DataFrame(rows)


def training_view(log: pd.DataFrame) -> pd.DataFrame:
    """What each method's runs did: updates, held-out pass@1 first and last, KL and ‖ΔW‖ at the end.

    Means over seeds of the runs in the log; one row a method and learning rate.
    """
    rows = log[log["algorithm"].notna()].sort_values(["run", "step"])
    runs = rows.groupby("run", sort=False).agg(
        algorithm=("algorithm", "first"),
        rate=("learning_rate", "first"),
        steps=("step", "last"),
        updates=("updates", "last"),
        first=("pass_at_1", "first"),
        last=("pass_at_1", "last"),
        kl=("kl", "last"),
        length=("length", "last"),
        delta_norm=("delta_norm", "last"),
    )
    means = runs.groupby(["algorithm", "rate"], sort=False).mean().reset_index()
    return means.assign(algorithm=means["algorithm"].map(method_name)).rename(
        columns={
            "algorithm": "method",
            "rate": "learning rate",
            "first": "pass@1, first",
            "last": "pass@1, last",
            "kl": "KL to base",
            "delta_norm": "‖ΔW‖",
        }
    )


def rate_summary(rates: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean correlations between runs of one kind, those on the same data set and those on different ones."""
    data = frame.drop_duplicates("pair").set_index("pair")["data"]
    rows = rates[rates["role"].isin(LINEAR)]
    same = rows["run_a"].map(data) == rows["run_b"].map(data)
    kinds = rows["method"].map({"rl": "RL", "sft": "SFT"}).fillna(rows["method"]).rename("runs")
    named = same.map({True: "same data", False: "different data"}).rename("data")
    means = rows.groupby([kinds, named, "axis"])[["spearman", "storage_density_mean"]].mean()
    return means.reset_index()


def algorithm_view(log: pd.DataFrame) -> pd.DataFrame:
    """Where the algorithms differ: means over the reward-curve runs of what the log records of them."""
    rows = learning_view(log)
    facts = rows.groupby("method", sort=False)
    return facts.agg(
        clip_fraction=("clip_fraction", "mean"),
        largest_clip_fraction=("clip_fraction", "max"),
        resampled_groups=("resampled_groups", "mean"),
        advantage_scale=("advantage_scale", "mean"),
    ).reset_index()


def orientation_view(axis: pd.DataFrame, method: str = "rl") -> pd.DataFrame:
    """Excess spread of row and of column ratios of each matrix type, observed and under storage null 1a."""
    rows = axis[(axis["method"] == method) & axis["role"].isin(ROLES)]
    spreads = rows[["role", "axis"]].assign(
        observed=excess_spread(rows, "dispersion"), null=excess_spread(rows, "storage_density_mean")
    )
    wide = spreads.groupby(["role", "axis"])[["observed", "null"]].mean().unstack("axis")
    names = {("observed", a): a for a in ("row", "column")} | {
        ("null", a): f"{a}, null" for a in ("row", "column")
    }
    view = pd.DataFrame({name: wide[key] for key, name in names.items()})
    return view.reindex([role for role in ROLES if role in view.index]).reset_index()
