"""Sparsity of whole models."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.planted.tensor_frames import tensor_rows
from threegates.measures.whole_models import pair_sparsity


def test_whole_models_count_every_parameter_and_linear_layers_their_own():
    frame = tensor_rows({("rl", "grpo", "mask", 1): 0.5})
    skipped = {
        **frame.iloc[0].to_dict(),
        "status": "resized",
        "size": 1000,
        "changed": None,
        "sparsity": math.nan,
    }
    row = pair_sparsity(pd.concat([frame, pd.DataFrame([skipped])])).iloc[0]
    assert row["sparsity"] == pytest.approx((80 * 0.5 + 20) / 100)
    assert row["linear_sparsity"] == 0.5 and row["size"] == 100 and row["changed"] == 40
