"""Tidy frames of the rotation's figures and tables: what is drawn, computed from the chapter's tables."""

from __future__ import annotations

from typing import cast

import pandas as pd

from threegates.estimates.intervals import t_estimate
from threegates.figures.names import ROLES
from threegates.measures.rotation import BACK, RAW, ROTATED, UNTOUCHED, VALUES

#: Axis of a matrix that runs over entries of heads; the other one runs over the residual stream.
HEAD_AXIS = {"v": "row", "o": "column"}
_PLACE = ["layer", "role", "touched", "permuted", "comparison", "seed"]
#: The least relative change that float64 tells from none: a smaller one has no place on a logarithmic axis.
FLOOR = 2.0**-53


def chosen(rotation: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with an untouched run of another seed; where a build has one seed alone, of the same."""
    other = rotation[~rotation["same_seed"]]
    return other if len(other) else rotation


def matrix_view(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One measure of every matrix, comparison and seed beside its null; means over frames.

    Columns: layer, role, touched, permuted, comparison, seed, value, null, density (of the untouched run's
    mask: the paper's own baseline of its overlap). A comparison in raw order stands only where heads were
    permuted: elsewhere it is the same as in their original order.
    """
    kept = rows[rows["permuted"] | (rows["comparison"] != RAW)]
    # The excess is measured from its null, so that this lies at zero.
    null = kept.get(f"{measure}_null", 0.0)
    named = kept.assign(value=kept[measure], null=null, density=kept["density_a"])
    means = named.groupby(_PLACE)[["value", "null", "density"]].mean().reset_index()
    return _in_order(means)


def rates_view(rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of the ratios of V and O by what their lines stand for, beside the null's.

    Columns: layer, role, touched, permuted, comparison, seed, side ("head": rows of V and columns of O;
    "residual": the others), value, null.
    """
    kept = rows[rows["role"].isin(VALUES) & (rows["comparison"] != RAW)]
    frames = []
    for axis in ("row", "column"):
        head = kept["role"].map(HEAD_AXIS) == axis
        side = head.map({True: "head", False: "residual"})
        columns = {"value": kept[f"spearman_{axis}"], "null": kept[f"spearman_{axis}_null"]}
        frames.append(kept.assign(side=side, **columns))
    means = pd.concat(frames).groupby([*_PLACE, "side"])[["value", "null"]].mean().reset_index()
    return _in_order(means)


def _in_order(view: pd.DataFrame) -> pd.DataFrame:
    """By layer, by role as models have them, by comparison as the figures name them."""
    roles = {role: number for number, role in enumerate(ROLES)}
    comparisons = {name: number for number, name in enumerate((UNTOUCHED, ROTATED, RAW, BACK))}
    places = view.assign(r=view["role"].map(roles), c=view["comparison"].map(comparisons))
    return places.sort_values(["layer", "r", "c", "seed"]).drop(columns=["r", "c"]).reset_index(drop=True)


def seeds_table(rotation: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean excess of rotated and of other matrices with its t interval, of equal and of different seeds."""
    rows = rotation[rotation["comparison"] != RAW]
    rows = rows.assign(
        matrices=rows["touched"].map({True: "rotated V and O", False: "all others"}),
        prompts=rows["same_seed"].map({True: "same seed", False: "other seeds"}),
    )
    found = []
    for place, own in rows.groupby(["prompts", "matrices", "comparison"]):
        mean = t_estimate(own.groupby("seed")["excess"].mean(), "seeds", confidence)
        told = dict(zip(("runs compared", "matrices", "comparison"), cast(tuple, place), strict=True))
        numbers = {"excess": mean.value, "low": mean.low, "high": mean.high}
        found.append({**told, **numbers, "null": own["jaccard_null"].mean(), "seeds": mean.n})
    order = {name: number for number, name in enumerate((UNTOUCHED, ROTATED, BACK))}
    table = pd.DataFrame(found).sort_values("comparison", key=lambda names: names.map(order), kind="stable")
    table = table.sort_values(["runs compared", "matrices"], ascending=[True, False], kind="stable")
    return table.reset_index(drop=True)


def group_means(rows: pd.DataFrame, column: str) -> pd.Series:
    """Means over matrices, then over seeds, of one column by (touched, comparison)."""
    per_seed = rows.groupby(["touched", "comparison", "seed"])[column].mean()
    return per_seed.groupby(["touched", "comparison"]).mean()


def spectrum_view(frame: pd.DataFrame) -> pd.DataFrame:
    """NSS of every matrix that a frame changes: frame, layer, role, rotated, stage, nss (at least FLOOR)."""
    stages = {"nss_exact": "in float64, before rounding", "nss_stored": "as stored in bf16"}
    long = frame.melt(
        id_vars=["frame", "layer", "role", "rotated", "permuted"],
        value_vars=list(stages),
        var_name="stage",
        value_name="nss",
    )
    return long.assign(stage=long["stage"].map(stages), nss=long["nss"].clip(lower=FLOOR))


def frame_table(frame: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """One row a rotated base: largest NSS and largest difference of logits, before rounding and as stored."""
    nss = frame.groupby("base", sort=False).agg(
        frame=("frame", "first"), before=("nss_exact", "max"), stored=("nss_stored", "max")
    )
    gaps = log.dropna(subset="logit_gap") if "logit_gap" in log else log.iloc[:0]
    gaps = gaps.drop_duplicates("run").set_index("run").reindex(nss.index)
    return pd.DataFrame(
        {
            "frame": nss["frame"],
            "largest NSS, float64": nss["before"],
            "largest NSS, stored": nss["stored"],
            "logit gap, float64": gaps.get("logit_gap"),
            "logit gap, stored": gaps.get("logit_gap_stored"),
        }
    ).reset_index(drop=True)
