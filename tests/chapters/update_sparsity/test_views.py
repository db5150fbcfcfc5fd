"""Frames of sparsity by method, its summary over seeds, and the training beside it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from threegates.chapters.update_sparsity import views as update_sparsity_views


def _tensors(*pairs: tuple[str, str | None, float, int, float]) -> pd.DataFrame:
    """Pairs (name, algorithm, rate, seed, sparsity): a matrix of 80 entries, a norm of 20 kept ones."""
    rows = []
    for pair, algorithm, rate, seed, sparsity in pairs:
        facts = {"pair": pair, "algorithm": algorithm, "learning_rate": rate, "seed": seed}
        for role, size, value in (("q", 80, sparsity), ("norm", 20, 1.0)):
            numbers = {"sparsity": value, "sparsity_fp32": 0.0, "sparsity_storage_norm": value - 0.25}
            changed = {"changed": round(size * (1 - value)), "size": size}
            rows.append({**facts, "role": role, "status": "compared", **numbers, **changed})
    return pd.DataFrame(rows)


def test_sparsities_stand_in_the_order_of_the_figure_with_method_and_rate():
    frame = _tensors(
        ("teacher-own", "sft-teacher", 3e-4, 1, 0.1),
        ("teacher", "sft-teacher", 5e-6, 1, 0.3),
        ("mine", None, np.nan, 1, 0.6),
        ("rft", "rft", 5e-6, 1, 0.4),
        ("grpo", "grpo", 5e-6, 1, 0.5),
        ("reinforce", "reinforce++", 5e-6, 1, 0.7),
    )
    view = update_sparsity_views.sparsity_view(frame)
    assert list(view["label"]) == [
        "REINFORCE++, lr 5e-06", "GRPO, lr 5e-06", "RFT, lr 5e-06", "SFT (teacher), lr 5e-06",
        "SFT (teacher), lr 3e-04", "your pair, mine",
    ]  # fmt: skip
    assert list(view["pair"]) == ["reinforce", "grpo", "rft", "teacher", "teacher-own", "mine"]
    grpo = view.set_index("pair").loc["grpo"]
    assert grpo["sparsity"] == pytest.approx((80 * 0.5 + 20) / 100)
    assert grpo["linear_sparsity"] == pytest.approx(0.5)


def test_the_summary_has_a_row_for_each_label_with_students_interval_over_seeds():
    levels = (0.5, 0.6, 0.75)
    runs = [(f"grpo-{seed}", "grpo", 5e-6, seed, level) for seed, level in enumerate(levels)]
    view = update_sparsity_views.sparsity_view(_tensors(*runs, ("rft", "rft", 5e-6, 0, 0.4)))
    summary = update_sparsity_views.sparsity_summary(view).set_index("method")
    assert list(summary.index) == ["GRPO, lr 5e-06", "RFT, lr 5e-06"]
    grpo, whole = summary.iloc[0], [(80 * level + 20) / 100 for level in levels]
    student = stats.ttest_1samp(whole, 0).confidence_interval(0.95)
    assert (grpo["bf16"], grpo["low"], grpo["high"]) == pytest.approx(
        (np.mean(whole), student.low, student.high)
    )
    assert grpo["seeds"] == 3
    assert grpo["linear layers"] == pytest.approx(np.mean(levels))
    assert grpo["noise of equal norm"] == pytest.approx(np.mean(whole) - 0.25)
    assert summary.iloc[1]["seeds"] == 1
    assert np.isnan(summary.iloc[1]["low"])


def test_training_view_takes_first_and_last_evaluations_and_means_over_seeds():
    rows = []
    for seed, (first, last) in {1: (0.2, 0.4), 2: (0.4, 0.8)}.items():
        facts = {"run": f"r{seed}", "algorithm": "grpo", "learning_rate": 1e-5, "length": 9.0}
        for step, found in ((1, np.nan), (2, first), (3, np.nan), (4, last)):
            line = {"step": step, "updates": 4 * step, "pass_at_1": found, "kl": 0.01 * step * seed}
            rows.append(facts | line | {"delta_norm": float(step)})
    rows.append({"run": "base", "algorithm": None, "step": 1, "updates": 1, "pass_at_1": 0.1})
    view = update_sparsity_views.training_view(pd.DataFrame(rows))
    assert view["method"].tolist() == ["GRPO"] and view["updates"].tolist() == [16]
    assert view["pass@1, first"].iloc[0] == pytest.approx(0.3) and view["‖ΔW‖"].iloc[0] == 4
    assert view["pass@1, last"].iloc[0] == pytest.approx(0.6)
    assert view["KL to base"].iloc[0] == pytest.approx(0.06)
