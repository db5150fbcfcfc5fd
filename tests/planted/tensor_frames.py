"""The table of tensors by hand: pairs of one matrix and one norm, of known sparsity."""

from __future__ import annotations

import pandas as pd


def tensor_rows(sparsities: dict, **more) -> pd.DataFrame:
    """One pair for each (method, algorithm, rate, seed): a matrix of 80 entries and a norm of 20."""
    rows = []
    for (method, algorithm, rate, seed), sparsity in sparsities.items():
        facts = {"pair": f"{algorithm}-{rate}-{seed}", "base": "b", "method": method, "algorithm": algorithm}
        facts |= {"data": "d", "seed": seed, "learning_rate": 1e-5, "rate": rate, "run": f"{algorithm}{seed}"}
        for role, size, value in (("q", 80, sparsity), ("norm", 20, 1.0)):
            numbers = {"sparsity": value, "sparsity_fp32": 0.0, "sparsity_storage_norm": value - 0.2}
            numbers |= {"changed": round(size * (1 - value)), "size": size}
            rows.append(
                {**facts, "role": role, "status": "compared", "stored_dtype_tuned": "F32", **numbers, **more}
            )
    return pd.DataFrame(rows)
