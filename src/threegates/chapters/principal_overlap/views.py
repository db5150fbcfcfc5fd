"""Tidy frames for the figures of principal weights, computed from the chapter's tables and nothing else.

Runs are shown in groups: RL's algorithms together, every other method alone, each at its learning rate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.rows import SFT
from threegates.figures.names import METHODS, method_name
from threegates.figures.nulls import nulls_in
from threegates.geometry.nulls import storage_density
from threegates.geometry.nulls.null import Null
from threegates.geometry.precision import ETA
from threegates.geometry.principal import TARGETS
from threegates.measures.overlap import MATCHED, RAW

#: Names on the page of an update as it is and scaled to RL's norm.
UPDATES = {RAW: "as trained", MATCHED: "at RL's norm"}
_ENDS = ("mean", "low", "high")


def grouped(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of linear matrices as trained with their group, RL first, then by method and by rate.

    Pairs that a reader has chosen are groups of their own.
    """
    rows = table[table["role"].isin(LINEAR) & (table["variant"] == RAW)]
    facts = zip(rows["method"], rows["algorithm"], rows["rate"], strict=True)
    named = list(rows["pair"]) if "alone" in rows else [group_name(*fact) for fact in facts]
    names = pd.Series(named, index=rows.index, dtype="str")
    return rows.assign(group=names).sort_values("group", key=_group_order, kind="stable")


def group_name(method: Any, algorithm: Any, rate: Any) -> str:
    """Name of a run's group on the page."""
    name = "RL" if method == "rl" else method_name(algorithm)
    return f"{name}, own rate" if rate == "own" else name


def _group_order(names: pd.Series) -> pd.Series:
    known = ["RL", *reversed(METHODS.values())]
    order = {name: number for number, name in enumerate(known)}
    return names.map(lambda name: order.get(name.removesuffix(", own rate"), 99) + 100 * ("own rate" in name))


def shown_groups(table: pd.DataFrame) -> list[str]:
    """Groups for the figures: RL and SFT at RL's learning rate, or whatever there is; every chosen pair."""
    groups = list(dict.fromkeys(grouped(table)["group"]))
    if "alone" in table:
        return groups
    usual = [group for group in groups if group in ("RL", *map(method_name, (*SFT, "sft-same-style")))]
    return usual or groups[:1]


def overlap_view(overlap: pd.DataFrame, view: str = "bf16") -> pd.DataFrame:
    """Overlap of each group and matrix type with each target, mean over blocks and runs, beside its nulls.

    `overlap_low` and `overlap_high` are the smallest and largest mean of one run; a null's low and high are
    the mean 2.5 % and 97.5 % quantiles of one matrix's draws.
    """
    rows = grouped(overlap[overlap["view"] == view])
    columns = ["overlap", "density", *(f"{null.name}_{end}" for null in nulls_in(rows) for end in _ENDS)]
    keys = ["group", "role", "target"]
    means = rows.groupby(keys, sort=False)[columns].mean()
    per_run = rows.groupby([*keys, "pair"], sort=False)["overlap"].mean().groupby(keys, sort=False)
    return means.assign(overlap_low=per_run.min(), overlap_high=per_run.max()).reset_index()


def overlap_summary(overlap: pd.DataFrame) -> pd.DataFrame:
    """Mean overlap of each group with each target in both views, beside density and nulls."""
    rows = grouped(overlap)
    columns = ["overlap", "density", *(f"{null.name}_mean" for null in nulls_in(rows, uniform=False))]
    order = {target: number for number, target in enumerate(TARGETS)}
    means = rows.groupby(["group", "view", "target"], sort=False)[columns].mean().reset_index()
    return means.sort_values("target", key=lambda c: c.map(order), kind="stable").sort_values(
        "group", key=_group_order, kind="stable"
    )


def layer_view(overlap: pd.DataFrame, group: str) -> pd.DataFrame:
    """Lift of one group's bf16 masks by block and matrix type, observed and under storage null 1a."""
    rows = grouped(overlap[overlap["view"] == "bf16"])
    rows = rows[rows["group"] == group]
    frames = [
        rows.assign(kind=kind, lift=rows[column] / rows["density"])
        for kind, column in (("observed", "overlap"), ("storage_density", "storage_density_mean"))
    ]
    keys = ["kind", "target", "role", "layer"]
    return pd.concat(frames).groupby(keys, sort=False)["lift"].mean().reset_index()


def sweep_view(sweep: pd.DataFrame, group: str) -> pd.DataFrame:
    """Mean lift of one group at every rank and share, at the paper's tolerance.

    Columns: view, target, rank (such as "n/8", n the smaller side of a matrix, or "k = 64"), order (of the
    ranks), alpha, lift. Long matrices are swept at the same ranks, short ones at parts of n: ranks have the
    kind of name by which more are common to all matrices, and the others are left out.
    """
    rows = grouped(sweep)
    # The paper's own tolerance. The mask of the largest float32 changes has none, and its rows stay.
    rows = rows[(rows["eta"] == ETA) | rows["eta"].isna()]
    rows = rows[(rows["group"] == group) & (rows["variant"] == "raw")]
    rows = _comparable(rows)
    return rows.groupby(["view", "target", "rank", "order", "alpha"], sort=False)["lift"].mean().reset_index()


def _comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows at the ranks that all matrices have, under their names: only such means can be compared.

    Where no rank is common, all of them.
    """
    divisors = (rows["smaller_side"] / rows["k"]).round().astype(int)
    named = (
        rows.assign(order=-divisors, rank=[f"n/{divisor}" for divisor in divisors]),
        rows.assign(order=rows["k"], rank=[f"k = {k}" for k in rows["k"]]),
    )
    kept = [names[names["order"].isin(_common(names))] for names in named]
    best = max(kept, key=lambda names: names["order"].nunique())
    return named[0] if best.empty else best


def _common(rows: pd.DataFrame) -> set[int]:
    """Ranks that matrices of every smaller side were swept at."""
    ranks = [set(own) for _, own in rows.groupby("smaller_side")["order"]]
    return set.intersection(*ranks) if ranks else set()


def view_comparison(overlap: pd.DataFrame, target: str = "principal") -> pd.DataFrame:
    """Lift with one target by group and matrix type: bf16, fp32, and what nulls give bf16's masks."""
    rows = overlap[overlap["target"] == target]
    bf16, fp32 = (overlap_view(rows, view).set_index(["group", "role"]) for view in ("bf16", "fp32"))
    lifts = {
        "bf16": bf16["overlap"],
        "fp32": fp32["overlap"],
        **{null.name: bf16[f"{null.name}_mean"] for null in beside_lifts(nulls_in(bf16))},
    }
    return pd.DataFrame({name: values / bf16["density"] for name, values in lifts.items()}).reset_index()


def beside_lifts(nulls: list[Null]) -> list[Null]:
    """Nulls that stand beside lifts: not a uniform one, whose lift is one, and not null 1a, which has maps of
    its own (`layer_view`).
    """
    return [null for null in nulls if not null.uniform and null != storage_density.NULL]


def matched_view(overlap: pd.DataFrame, direction: pd.DataFrame) -> pd.DataFrame:
    """RL beside the runs that were scaled to its norm: one row a group and variant, means over runs.

    Of RL only the runs whose norm others took. Columns: group, update ("as trained" or "at RL's norm"); of
    the bf16 view `overlap` with principal weights, its smallest and largest run `low` and `high`, the mask's
    `density`, and `energy`, ρ² of the rounded update over its expectation (geometric mean over matrices);
    `overlap_fp32` and `energy_fp32` before rounding.
    """
    rows = overlap[overlap["target"] == "principal"]
    partners = set(rows["partner"]) - {""}
    runs = _beside(rows, partners)
    runs = runs.assign(mask=runs["changed"] / runs["size"])
    energy = _beside(direction, partners)
    energy = energy.assign(log=np.log(energy["rho2"] / energy["expected"]))
    bf16, fp32 = (
        _of_view(runs, view, ["overlap", "mask"]).join(_of_view(energy, view, ["log"]))
        for view in ("bf16", "fp32")
    )
    groups = [bf16.groupby(["group", "update"], sort=False), fp32.groupby(["group", "update"], sort=False)]
    first, second = (group.mean() for group in groups)
    view = pd.DataFrame(
        {
            "overlap": first["overlap"],
            "low": groups[0]["overlap"].min(),
            "high": groups[0]["overlap"].max(),
            "density": first["mask"],
            "energy": np.exp(first["log"]),
            "overlap_fp32": second["overlap"],
            "energy_fp32": np.exp(second["log"]),
        }
    )
    return view.reset_index().sort_values("group", key=_group_order, kind="stable").reset_index(drop=True)


def _of_view(rows: pd.DataFrame, view: str, columns: list[str]) -> pd.DataFrame:
    keys = ["group", "update", "pair"]
    return rows[rows["view"] == view].groupby(keys, sort=False)[columns].mean()


def _beside(table: pd.DataFrame, partners: set[str]) -> pd.DataFrame:
    """Rows as trained and scaled, of runs that were scaled and of those whose norms they took; grouped."""
    scaled = set(table.loc[table["variant"] == MATCHED, "pair"])
    rows = table[table["pair"].isin(scaled | partners)]
    return pd.concat(
        grouped(rows[rows["variant"] == variant].assign(variant=RAW)).assign(update=update)
        for variant, update in UPDATES.items()
    )


def direction_view(direction: pd.DataFrame) -> pd.DataFrame:
    """Energy of updates in the principal block over its mean in random frames, by group and matrix type.

    Geometric mean over blocks and runs, smallest and largest mean of one run; `random_low` and `random_high`
    are the mean quantiles of random frames on the same scale. Stable rank: plain mean.
    """
    rows = grouped(direction[direction["view"] == "fp32"])
    rows = rows.assign(
        log=np.log(rows["rho2"] / rows["rotation_mean"]),
        random_low=rows["rotation_low"] / rows["rotation_mean"],
        random_high=rows["rotation_high"] / rows["rotation_mean"],
    )
    keys = ["group", "role"]
    means = rows.groupby(keys, sort=False)[["log", "random_low", "random_high", "rho2", "stable_rank"]].mean()
    per_run = rows.groupby([*keys, "pair"], sort=False)["log"].mean().groupby(keys, sort=False)
    view = means.assign(
        ratio=np.exp(means["log"]), ratio_low=np.exp(per_run.min()), ratio_high=np.exp(per_run.max())
    )
    return view.drop(columns="log").reset_index()
