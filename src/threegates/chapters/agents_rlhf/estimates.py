"""Estimates that only the paper's own checkpoints can give: their numbers against the printed ones."""

from __future__ import annotations

import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.intervals import Estimate, exact, missing
from threegates.estimates.paper import table_2
from threegates.estimates.rows import Estimator, Tables
from threegates.measures.whole_models import pair_sparsity

#: How far a measured number may lie from a printed one and still count as the same: half a percentage point
#: of sparsity, one hundredth of a Jaccard index.
SPARSITY_TOLERANCE, JACCARD_TOLERANCE = 0.005, 0.01
#: The block of Table 2.
BLOCK_OF_TABLE_2 = 13
_ABSENT = "none of the paper's own checkpoints is among the pairs"


def _printed(tables: Tables, *labels: str) -> pd.DataFrame:
    """Sparsity of the pairs that have these labels, with the labels' numbers as shares in [0, 1]."""
    tensor = tables.table("tensor")
    if not set(labels) <= set(tensor.columns):
        return pd.DataFrame()
    rows = tensor[tensor[list(labels)].notna().all(axis=1)]
    if rows.empty:
        return pd.DataFrame()
    shares = rows.drop_duplicates("pair").set_index("pair")[list(labels)].astype(float) / 100
    return pair_sparsity(rows).join(shares, on="pair")


def _table_1_values(tables: Tables, confidence: float) -> Estimate:
    """Share of the pairs of Table 1 whose sparsity is the printed one."""
    found = _printed(tables, "paper_sparsity")
    if found.empty:
        return missing(_ABSENT, "pairs")
    same = (found["sparsity"] - found["paper_sparsity"]).abs() <= SPARSITY_TOLERANCE
    return exact(float(same.mean()), len(found), "pairs")


def _table_1_over_follow_up(tables: Tables, confidence: float) -> Estimate:
    """Of the rows that a follow-up quotes otherwise, the share that lies nearer to the paper's number."""
    found = _printed(tables, "paper_sparsity", "followup_sparsity")
    if found.empty:
        return missing(_ABSENT, "pairs")
    to_paper, to_other = (
        (found["sparsity"] - found[name]).abs() for name in ("paper_sparsity", "followup_sparsity")
    )
    return exact(float((to_paper < to_other).mean()), len(found), "pairs")


def _table_2_values(tables: Tables, confidence: float) -> Estimate:
    """Share of the matrix types of Table 2 whose mean Jaccard index is the printed one."""
    rows = tables.table("agreement")
    if not _of_paper(tables):
        return missing(_ABSENT, "matrix types")
    rows = rows[(rows["layer"] == BLOCK_OF_TABLE_2) & rows["role"].isin(LINEAR)]
    means = rows.groupby("role")["jaccard"].mean()
    printed = table_2().set_index("role")["paper_jaccard"].reindex(means.index)
    if means.empty:
        return missing(_ABSENT, "matrix types")
    same = (means - printed).abs() <= JACCARD_TOLERANCE
    return exact(float(same.mean()), len(means), "matrix types")


def _of_paper(tables: Tables) -> bool:
    """Whether the runs that are compared are the runs of Table 1."""
    tensor = tables.table("tensor")
    return "paper_sparsity" in tensor.columns and bool(tensor["paper_sparsity"].notna().any())


ESTIMATES: dict[str, Estimator] = {
    "table_1_values": _table_1_values,
    "table_1_over_follow_up": _table_1_over_follow_up,
    "table_2_values": _table_2_values,
}
