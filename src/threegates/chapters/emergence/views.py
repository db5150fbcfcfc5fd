"""Tables for the figures of the chapter emergence."""

from __future__ import annotations

import numpy as np
import pandas as pd


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
