"""Tidy frames of the chapter on spectral drift: what is drawn, computed from its two tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.intervals import t_estimate
from threegates.estimates.rows import SFT
from threegates.figures.names import group_label, method_name, method_order
from threegates.measures.drift import MATCHED, MATCHED_ROUNDED, NOISE, RAW, ROUNDED

#: Where a variant is drawn; an RL run is its own partner, so that it stands beside the scaled runs as it is.
PANELS = {RAW: "as trained", MATCHED: "at equal ‖ΔW‖"}


def labelled(drift: pd.DataFrame) -> pd.DataFrame:
    """The rows of the drift or spectrum table with the names of method and learning rate, in page order."""
    names = drift["algorithm"].map(method_name)
    labels = [group_label(*facts) for facts in zip(names, drift["learning_rate"], drift["pair"], strict=True)]
    rows = drift.assign(method=names, family=drift["method"], label=labels, order=method_order(drift))
    return rows.sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)


def in_degrees(drift: pd.DataFrame) -> pd.DataFrame:
    """Angles of both sides together, in degrees, with Thm 3.3's corrected bound as an angle and the floor.

    `angle_mean` is the mean over both subspaces, `angle_max` the larger maximum, `angle_aware` the same at
    the rank in k/2 … k that has the base's widest gap behind it; `angle_limit` is
    arcsin min(1, ‖ΔW‖₂/δ_k), 90° where the bound is vacuous; `floor` bounds the numerical error.
    """
    sides = drift[["angle_left_max", "angle_right_max"]].max(axis=1)
    aware = drift[["angle_left_gap_aware_max", "angle_right_gap_aware_max"]].max(axis=1)
    return drift.assign(
        angle_aware=np.degrees(aware),
        angle_mean=np.degrees((drift["angle_left_mean"] + drift["angle_right_mean"]) / 2),
        angle_max=np.degrees(sides),
        angle_limit=np.degrees(np.arcsin(drift["wedin_corrected_bound"].clip(upper=1))),
        floor=np.degrees(drift["angle_bound"]),
    )


def drift_view(drift: pd.DataFrame) -> pd.DataFrame:
    """Means over a model's matrices, one row a pair and variant; angles in degrees.

    Noise has one row for each draw. Columns: label, method, family, pair, seed, variant, draw (from 0; of
    noise), angle_mean, angle_max, angle_aware, nss, nss_bound, angle_limit, floor (the largest).
    """
    rows = in_degrees(labelled(drift))
    rows = rows.assign(draw=rows.groupby(["pair", "tensor", "variant"], sort=False).cumcount())
    keys = ["label", "method", "family", "pair", "seed", "variant", "draw"]
    numbers = ["angle_mean", "angle_max", "angle_aware", "nss", "nss_bound", "angle_limit"]
    groups = rows.groupby(keys, sort=False, dropna=False)
    return groups[numbers].mean().assign(floor=groups["floor"].max()).reset_index()


def drift_summary(view: pd.DataFrame) -> pd.DataFrame:
    """Mean drift of each method and rate over seeds, with t intervals of the mean angle as trained.

    `noise, sd` is the standard deviation of noise's mean angle between draws, mean over seeds.
    """
    rows = []
    for label, group in view.groupby("label", sort=False):
        by = dict(list(group.groupby("variant")))
        own = t_estimate(by[RAW]["angle_mean"], "seeds", 0.95)
        row = {"method": label, "seeds": own.n, "angle": own.value, "low": own.low, "high": own.high}
        for name, variant in (
            ("angle, bf16", ROUNDED),
            ("angle, noise", NOISE),
            ("angle, equal norm", MATCHED),
            ("angle, equal norm, bf16", MATCHED_ROUNDED),
        ):
            row[name] = by[variant]["angle_mean"].mean() if variant in by else np.nan
        row["noise, sd"] = by[NOISE].groupby("pair")["angle_mean"].std().mean()
        row["largest"] = by[RAW]["angle_max"].mean()
        row["largest, widest gap"] = by[RAW]["angle_aware"].mean()
        row["NSS"] = by[RAW]["nss"].mean()
        row["NSS, noise"] = by[NOISE]["nss"].mean()
        row["NSS, equal norm"] = by[MATCHED]["nss"].mean() if MATCHED in by else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def matrix_view(drift: pd.DataFrame) -> pd.DataFrame:
    """Every matrix of the model, means over seeds: one row a method, panel and matrix; angles in degrees.

    Of a method that ran at several learning rates the largest is shown. Columns: panel, label, method,
    position (block by block, in the order of `LINEAR`), tick, layer, role, angle_mean, angle_max, nss,
    nss_bound, angle_limit, floor.
    """
    linear = drift[drift["role"].isin(LINEAR)]
    rows = in_degrees(labelled(drift if linear.empty else linear))
    largest = rows.groupby("method")["learning_rate"].transform("max")
    rows = rows[rows["learning_rate"].isna() | (rows["learning_rate"] == largest)]
    shown = pd.concat(_panels(rows))
    numbers = ["angle_mean", "angle_max", "nss", "nss_bound", "angle_limit", "floor"]
    keys = ["panel", "label", "method", "layer", "role"]
    means = shown.groupby(keys, sort=False, dropna=False)[numbers].mean().reset_index()
    present = [role for role in LINEAR if role in set(means["role"])]
    place = means["role"].map({role: number for number, role in enumerate(present)})
    # Roles outside LINEAR share one place after the others, which also leaves a gap between blocks.
    position = means["layer"].astype(int) * (len(present) + 1) + place.fillna(len(present)).astype(int)
    return means.assign(position=position, tick=means["role"] + means["layer"].astype(str))


def _panels(rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    yield rows[rows["variant"] == RAW].assign(panel=PANELS[RAW])
    matched = rows[rows["variant"] == MATCHED]
    if len(matched):
        own = rows[(rows["variant"] == RAW) & (rows["family"] == "rl")]
        yield pd.concat([own, matched]).assign(panel=PANELS[MATCHED])


def example_view(spectrum: pd.DataFrame, drift: pd.DataFrame) -> pd.DataFrame:
    """One matrix in full, of the first seed: singular values, their shifts, and the principal angles.

    Columns: panel, label, method, tensor, k, quantity ("base", "value", "shift", "left", "right"; angles in
    degrees), index (from 1), number, limit (‖ΔW‖₂ for shifts), floor (of the angles, in degrees), resolved
    (False for an angle below its floor).
    """
    keys = ["pair", "tensor", "variant"]
    norms = drift.loc[drift["variant"].isin(PANELS), [*keys, "spectral_norm_delta"]]
    rows = labelled(spectrum.merge(norms, on=keys, how="left", validate="one_to_one"))
    rows = rows[rows["seed"].isna() | (rows["seed"] == rows["seed"].min())]
    known = rows["algorithm"].isin(SFT) & (rows["rate"] != "mask") if "rate" in rows else False
    known = known | rows["algorithm"].isin(("grpo", "rft"))
    rows = pd.concat(_panels(rows[known] if known.any() else rows))
    return pd.DataFrame([line for row in rows.to_dict("records") for line in _lines(row)])


def _lines(row: dict) -> Iterator[dict]:
    facts = {name: row[name] for name in ("panel", "label", "method", "tensor", "k")}
    base, tuned = (np.asarray(row[f"values_{side}"], dtype=float) for side in ("base", "tuned"))
    quantities = {
        "base": base,
        "value": tuned,
        "shift": np.abs(tuned - base),
        "left": np.degrees(row["angles_left"]),
        "right": np.degrees(row["angles_right"]),
    }
    more = {"limit": row["spectral_norm_delta"], "floor": np.degrees(row["angle_bound"])}
    for quantity, values in quantities.items():
        for index, number in enumerate(values, start=1):
            known = quantity not in ("left", "right") or bool(number >= more["floor"])
            shown = {"quantity": quantity, "index": index, "number": float(number)}
            yield {**facts, **shown, **more, "resolved": known}


def bound_view(drift: pd.DataFrame) -> pd.DataFrame:
    """What the theorems say: one row a bound.

    Columns: the shares of matrices as trained where it is not vacuous, of RL and of the others; and over all
    variants, where it is not vacuous, the share for which it `holds`, and `median` and `largest` of the
    measured value over the bound; 1 is an equality.
    """
    names = {
        "weyl": "Cor. 3.4, each value",
        "mirsky": "Cor. 3.4, sum of squares",
        "ky_fan": "Cor. 3.5",
        "nss": "NSS",
        "wedin_printed": "Thm 3.3 as printed",
        "wedin_corrected": "Thm 3.3, corrected",
    }
    raw = drift[drift["variant"] == RAW]
    families = {"RL": raw["method"] == "rl", "others": raw["method"] != "rl"}
    rows = []
    for name, title in names.items():
        says = ~drift[f"{name}_vacuous"].astype(bool)
        ratio = (drift[f"{name}_measured"] / drift[f"{name}_bound"])[says]
        share = {
            f"says something, {who}": 1 - raw.loc[of, f"{name}_vacuous"].astype(float).mean()
            for who, of in families.items()
        }
        held = drift.loc[says, f"{name}_holds"].astype(float).mean()
        rows.append(
            {"bound": title, **share, "holds": held, "median": ratio.median(), "largest": ratio.max()}
        )
    return pd.DataFrame(rows)
