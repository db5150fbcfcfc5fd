"""Rows by hand for the claims on learning rates, beside those of the other claims, and their planters.

GRPO by AdamW at the mask rate is in the tensor table already; it gets a norm here. SGD's run at 0.02 has its
pass@1, that at 0.06 its norm, so that each of the two estimates reads a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import pandas as pd

Values = np.ndarray

#: Rate, optimiser, learning rate, ‖ΔW‖, pass@1 and sparsity of each run of a seed.
RUNS = (
    ("5e-05", "adamw", 1e-4, 8.0, 0.5, 0.3),
    ("0.006", "sgd", 0.006, 0.25, 0.25, 0.97),
    ("0.02", "sgd", 0.02, 0.5, 0.375, 0.79),
    ("0.06", "sgd", 0.06, 1.0, 0.4375, 0.79),
    ("0.2", "sgd", 0.2, 4.0, 0.5, 0.4),
)
#: Of AdamW at the mask rate.
NORM, PASS, SPARSITY = 1.0, 0.375, 0.69


def tensor_rows(facts: Callable[..., dict], seeds: Sequence[int]) -> list[dict]:
    """Two tensors of each run beside the mask rate, alike in all shares, with a half of ‖ΔW‖² each."""
    rows = []
    for (rate, optimiser, speed, norm, _, level), seed in product(RUNS, seeds):
        known = {**facts("rl", "grpo", rate, seed), "learning_rate": speed, "optimiser": optimiser}
        known |= {"status": "compared", "stored_dtype_tuned": "F32", "norm_delta": norm / np.sqrt(2)}
        shares = {"sparsity": level, "sparsity_fp32": 0.0, "sparsity_storage_norm": level}
        rows += [
            {**known, "tensor": role, "role": role, "size": size, **shares}
            for role, size in (("q", 80), ("norm", 20))
        ]
    return rows


def log_rows(facts: Callable[..., dict], seeds: Sequence[int]) -> list[dict]:
    """The last evaluation of every run, and one before it that nobody should read."""
    levels = [("mask", NORM, PASS), *((rate, norm, share) for rate, _, _, norm, share, _ in RUNS)]
    rows = []
    for (rate, norm, share), seed in product(levels, seeds):
        known = facts("rl", "grpo", rate, seed)
        rows.append({**known, "step": 10, "pass_at_1": 0.9, "kl": 1.0, "delta_norm": norm / 2})
        rows.append({**known, "step": 20, "pass_at_1": share, "kl": 0.01 * norm, "delta_norm": norm})
    return rows


def with_norms(tensor: pd.DataFrame) -> pd.DataFrame:
    """The tensor table in which GRPO at the mask rate has its norm."""
    where = (tensor["algorithm"] == "grpo") & (tensor["rate"] == "mask")
    tensor.loc[where, "norm_delta"] = NORM / np.sqrt(2)
    return tensor


def at_rate(rate: str, sign: int, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Sparsity at a rate that lies the values above, or below, that of AdamW at the mask rate."""
    where = (frame["rate"] == rate) & (frame["algorithm"] == "grpo")
    of_seed = frame["seed"].map(dict(zip(sorted(frame.loc[where, "seed"].unique()), values, strict=True)))
    frame.loc[where, "sparsity"] = SPARSITY + sign * of_seed[where].astype(float)
    return frame
