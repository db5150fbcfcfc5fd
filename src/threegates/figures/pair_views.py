"""Tidy frames of measured pairs, one colour a pair: what is drawn, computed from their tables of tensors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.figures.names import ROLES
from threegates.figures.nulls import nulls_in
from threegates.geometry.principal import TARGETS
from threegates.measures.tensor_table import MEASURED

#: Kinds of tensor in the order of the figure, with their names on axes.
KINDS = {**ROLES, "embedding": "embedding", "head": "head", "norm": "norms", "bias": "biases"}
#: What is followed over layers: column of the frame, its axis title.
DRIFT = {
    "nss": "NSS",
    "angle_left": "largest angle, left (degrees)",
    "angle_right": "largest angle, right (degrees)",
}
_ENDS = ("mean", "low", "high")


def role_view(tensors: pd.DataFrame) -> pd.DataFrame:
    """Share of unchanged bf16 weights by kind of tensor: pair, role, sparsity, noise, size.

    `noise` is the share under Gaussian noise of each tensor's stored norm (storage null 1b).

    **Source** Zhu et al. (2025), Definition 2.2.
    """
    rows = tensors[(tensors["status"] == "compared") & (tensors["size"] > 0) & tensors["role"].isin(KINDS)]
    weighted = rows.assign(noise=rows["sparsity_storage_norm"] * rows["size"])
    sums = weighted.groupby(["pair", "role"], sort=False)[["changed", "size", "noise"]].sum(min_count=1)
    sums = sums.astype("float64").reset_index()
    return pd.DataFrame(
        {
            "pair": sums["pair"],
            "role": sums["role"],
            "sparsity": 1 - sums["changed"] / sums["size"],
            "noise": sums["noise"] / sums["size"],
            "size": sums["size"],
        }
    )


def layer_view(tensors: pd.DataFrame) -> pd.DataFrame:
    """Medians over the matrices of each layer: one row a pair and layer, angles in degrees.

    Columns: pair, layer, nss, nss_bound (‖ΔW‖_F/‖W₀‖_F, which NSS cannot exceed), angle_left, angle_right
    (the largest of each side), floor (the largest bound on an angle's numerical error).
    """
    rows = tensors[tensors["spectra"] == MEASURED]
    rows = pd.DataFrame(
        {
            **{name: rows[name] for name in ("pair", "layer", "nss")},
            "nss_bound": rows["norm_delta"] / rows["norm_base"],
            "angle_left": np.degrees(rows["angle_left_max"]),
            "angle_right": np.degrees(rows["angle_right_max"]),
            "floor": np.degrees(rows["angle_bound"]),
        }
    )
    groups = rows.groupby(["pair", "layer"], sort=False)
    medians = groups[["nss", "nss_bound", "angle_left", "angle_right"]].median()
    return medians.assign(floor=groups["floor"].max()).reset_index()


def overlap_view(tensors: pd.DataFrame) -> pd.DataFrame:
    """Where the bf16 masks lie, means over matrices: one row a pair and target.

    Columns: pair, target, overlap, density, and of each null but Bernoulli's, whose mean is the density,
    ``<null>_mean``, ``_low`` and ``_high``; missing where a table has none.
    """
    rows = tensors[tensors["spectra"] == MEASURED]
    frames = []
    for target in TARGETS:
        nulls = [null.name for null in nulls_in(rows, f"overlap_{target}_{{}}_mean", uniform=False)]
        names = {f"overlap_{target}": "overlap", f"density_{target}": "density"}
        names |= {f"overlap_{target}_{null}_{end}": f"{null}_{end}" for null in nulls for end in _ENDS}
        means = rows.groupby("pair", sort=False)[list(names)].mean().rename(columns=names)
        frames.append(means.reset_index().assign(target=target))
    return pd.concat(frames, ignore_index=True)
