"""Shares of unchanged weights of whole models, from tables of tensors."""

from __future__ import annotations

import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR

PAIR_COLUMNS = (
    "pair",
    "base",
    "method",
    "algorithm",
    "data",
    "seed",
    "learning_rate",
    "rate",
    "run",
    "steps",
)


_SPARSITIES = ("sparsity", "sparsity_fp32", "sparsity_storage_norm")


def pair_sparsity(tensor: pd.DataFrame) -> pd.DataFrame:
    """Sparsity of whole models: one row a pair, over all parameters and over linear layers alone.

    Sparsity is 1 − Σ changed / Σ size over the tensors that both sides have in equal shape (status
    ``compared``). Columns: the pair's facts, `changed`, `size`, and for every measure (`sparsity` in bf16,
    `sparsity_fp32`, `sparsity_storage_norm` of noise of equal stored norm) its value and, as
    ``linear_…``, its value over linear layers.

    **Source** Zhu et al. (2025), Definition 2.2.
    """
    rows = tensor[(tensor["status"] == "compared") & (tensor["size"] > 0)]
    keys = [column for column in (*PAIR_COLUMNS, "updates") if column in rows.columns]
    lines = _totals(rows[rows["role"].isin(LINEAR)], keys)[list(_SPARSITIES)].add_prefix("linear_")
    return _totals(rows, keys).join(lines).reset_index()


def _totals(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Per pair, sums of `changed` and `size`, and sparsities weighted by size."""
    weighted = {name: rows[name] * rows["size"] for name in _SPARSITIES}
    sums = rows.assign(**weighted).groupby(keys, dropna=False, sort=False)
    # One tensor without a number leaves the whole without one.
    totals = sums[["changed", "size", *_SPARSITIES]].sum(skipna=False)
    return totals.assign(**{name: totals[name] / totals["size"] for name in _SPARSITIES})
