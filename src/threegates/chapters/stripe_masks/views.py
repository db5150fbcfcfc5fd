"""Tidy frames for the figures: what is drawn, computed from a chapter's tables and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.chapters.stripe_masks.estimates import excess_spread
from threegates.checkpoints.formats.roles import LINEAR
from threegates.figures.names import ROLES, run_labels
from threegates.figures.nulls import nulls_in
from threegates.measures.agreement import consensus_map


def consensus_view(
    maps: pd.DataFrame, method: str = "rl", kinds: tuple[str, ...] = ("observed", "storage_density")
) -> pd.DataFrame:
    """Consensus maps of the shown block as arrays: one row a matrix and kind.

    Of the nulls null 1a alone has a line of maps unless others are asked for: it has the runs' density.

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
    """Mean Jaccard of each matrix type beside its baselines, RL and SFT runs apart.

    `jaccard_low` and `jaccard_high` are the smallest and largest mean over the pairs of one run.
    """
    names = {"rl": "RL runs", "sft": "SFT runs", "rft": "RFT runs"}
    rows = agreement[agreement["role"].isin(LINEAR)]
    drawn = [null.name for null in nulls_in(rows, uniform=False)]
    out = []
    for (method, role), group in rows.groupby(["method", "role"], sort=False):
        long = pd.concat([group.assign(run=group["run_a"]), group.assign(run=group["run_b"])])
        per_run = long.groupby("run")["jaccard"].mean()
        ends = (("", "_mean"), ("_low", "_low"), ("_high", "_high"))
        nulls = {f"{n}{end}": group[f"{n}{source}"].mean() for n in drawn for end, source in ends}
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
    columns = ["dispersion", *(f"{null.name}_mean" for null in nulls_in(rows))]
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


def rate_summary(rates: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Mean correlations between runs of one kind, those on the same data set and those on different ones.

    Runs of which a data set is not known are told apart from both.
    """
    data = frame.drop_duplicates("pair").set_index("pair")["data"]
    rows = rates[rates["role"].isin(LINEAR)]
    sides = rows["run_a"].map(data), rows["run_b"].map(data)
    same = (sides[0] == sides[1]).astype(object).where(sides[0].notna() & sides[1].notna(), "unknown")
    kinds = rows["method"].map({"rl": "RL", "sft": "SFT"}).fillna(rows["method"]).rename("runs")
    names = {True: "same data", False: "different data", "unknown": "unknown data"}
    named = same.map(names).rename("data")
    means = rows.groupby([kinds, named, "axis"])[["spearman", "storage_density_mean"]].mean()
    return means.reset_index()


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
