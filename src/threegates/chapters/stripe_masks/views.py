"""Tidy frames for the figures: what is drawn, computed from a chapter's tables and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.chapters.stripe_masks.estimates import excess_spread
from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.paper import table_2
from threegates.figures.names import ROLES, run_labels
from threegates.figures.nulls import nulls_in
from threegates.measures.agreement import consensus_map

#: Name of the group of runs that the paper has too.
RL_RUNS = "RL runs"


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


#: Groups of pairs of SFT runs, where texts of two sources are among them.
ONE_TEXT, TWO_TEXTS = "SFT runs, one text", "SFT runs, two texts"


def baseline_view(agreement: pd.DataFrame, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean Jaccard of each matrix type beside its baselines, RL and SFT runs apart.

    frame : facts of the pairs, by which SFT runs on one text are told from those on two, a teacher's and the
        base's own style; without it all SFT runs are one group.

    `jaccard_low` and `jaccard_high` are the smallest and largest mean over the pairs of one run.
    """
    names = {"rl": RL_RUNS, "sft": "SFT runs", "rft": "RFT runs"}
    rows = agreement[agreement["role"].isin(LINEAR)]
    drawn = [null.name for null in nulls_in(rows, uniform=False)]
    out = []
    groups = rows["method"].map(names).fillna(rows["method"])
    if frame is not None:
        groups = _by_text(rows, groups, frame)
    for (name, role), group in rows.groupby([groups.rename("group"), "role"], sort=False):
        long = pd.concat([group.assign(run=group["run_a"]), group.assign(run=group["run_b"])])
        per_run = long.groupby("run")["jaccard"].mean()
        ends = (("", "_mean"), ("_low", "_low"), ("_high", "_high"))
        nulls = {f"{n}{end}": group[f"{n}{source}"].mean() for n in drawn for end, source in ends}
        facts = {
            "group": str(name),
            "role": role,
            "jaccard": group["jaccard"].mean(),
        }
        spread = {"jaccard_low": per_run.min(), "jaccard_high": per_run.max()}
        out.append(facts | spread | {"bernoulli": group["bernoulli"].mean()} | nulls)
    return pd.DataFrame(out)


def _by_text(rows: pd.DataFrame, groups: pd.Series, frame: pd.DataFrame) -> pd.Series:
    """The groups, SFT's by whether both runs of a pair learned from one text; as they are where all did."""
    texts = frame.drop_duplicates("pair").set_index("pair")["algorithm"]
    two = (rows["method"] == "sft") & (rows["run_a"].map(texts) != rows["run_b"].map(texts))
    if not two.any():
        return groups
    return groups.where(rows["method"] != "sft", ONE_TEXT).where(~two, TWO_TEXTS)


def beside_the_paper(baselines: pd.DataFrame) -> pd.DataFrame:
    """The baselines with `paper_jaccard` and `paper_bernoulli` of Table 2, which is of RL runs alone.

    **Source** Zhu et al. (2025), Table 2.
    """
    joined = baselines.merge(table_2(), on="role", how="left")
    printed = ["paper_jaccard", "paper_bernoulli"]
    joined[printed] = joined[printed].where(joined["group"] == RL_RUNS)
    return joined


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
    """Mean correlations between runs of one kind, by what their data have in common.

    Two runs of SFT on the same prompts were trained on the same data only where their texts are of one
    source: a teacher's and the base's own style are other texts. Runs of which a data set is not known are
    told apart from all.
    """
    facts = frame.drop_duplicates("pair").set_index("pair")
    rows = rates[rates["role"].isin(LINEAR)]
    prompts = [rows[side].map(facts["data"]) for side in ("run_a", "run_b")]
    texts = [rows[side].map(facts["algorithm"]) for side in ("run_a", "run_b")]
    supervised = rows["method"] == "sft"
    named = pd.Series("different data", index=rows.index, name="data")
    named[prompts[0] == prompts[1]] = "same data"
    named[supervised & (texts[0] != texts[1])] = "different data and text"
    named[supervised & (texts[0] != texts[1]) & (prompts[0] == prompts[1])] = "same prompts, other text"
    named[prompts[0].isna() | prompts[1].isna()] = "unknown data"
    kinds = rows["method"].map({"rl": "RL", "sft": "SFT"}).fillna(rows["method"]).rename("runs")
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
