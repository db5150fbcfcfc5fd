"""Frames of the lab's logs and evaluations, held against scipy's intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.planted.frames import evaluation
from threegates.chapters.miniature_lab import views as miniature_lab_views


def test_pass_rates_have_students_and_wilsons_intervals():
    rates = miniature_lab_views.pass_view(evaluation()).set_index(["run", "measure"])
    base = rates.loc[("base", "pass@1")]
    student = stats.ttest_1samp([0, 0.25, 0.5, 1.0], 0).confidence_interval(0.95)
    assert base["value"] == pytest.approx(0.4375)
    assert (base["low"], base["high"]) == pytest.approx((student.low, student.high))
    assert rates.loc[("base", "pass@8"), "value"] == 0.75
    wilson = stats.binomtest(3, 4).proportion_ci(0.95, "wilson")
    assert rates.loc[("base", "pass@8"), "low"] == pytest.approx(wilson.low)
    assert rates.loc[("grpo-2", "pass@8"), "high"] == pytest.approx(1.0)
    assert set(rates["label"]) == {"base", "GRPO · 1", "GRPO · 2"}


def test_the_gain_is_the_mean_over_seeds_above_the_base():
    gain = miniature_lab_views.gain_view(evaluation()).iloc[0]
    gains = [26 / 32 - 14 / 32, 1 - 14 / 32]
    student = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert gain["gain"] == pytest.approx(np.mean(gains))
    assert (gain["low"], gain["high"]) == pytest.approx((student.low, student.high))
    assert gain["seeds"] == 2


def _log() -> pd.DataFrame:
    rows = [
        ("grpo-1", "grpo", "reward", 1, 0.01, 0.0, 0.5), ("grpo-1", "grpo", "reward", 2, 0.03, 0.0, 0.7),
        ("dapo-1", "dapo", "reward", 1, 0.02, 4.0, 0.9), ("dapo-1", "dapo", "mask", 1, 0.5, 9.0, 9.0),
        ("base", None, None, 1, np.nan, np.nan, np.nan),
    ]  # fmt: skip
    columns = ["run", "algorithm", "rate", "step", "clip_fraction", "resampled_groups", "advantage_scale"]
    return pd.DataFrame(rows, columns=columns)


def test_learning_curves_are_those_of_the_reward_runs_named_by_method():
    view = miniature_lab_views.learning_view(_log())
    assert list(view["method"]) == ["GRPO", "GRPO", "DAPO"]
    assert list(view.index) == [0, 1, 2]


def test_where_the_algorithms_differ_is_a_mean_over_the_reward_runs():
    view = miniature_lab_views.algorithm_view(_log()).set_index("method")
    assert list(view.index) == ["GRPO", "DAPO"]
    assert view.loc["GRPO"].to_dict() == pytest.approx(
        {
            "clip_fraction": 0.02,
            "largest_clip_fraction": 0.03,
            "resampled_groups": 0.0,
            "advantage_scale": 0.6,
        }
    )
    assert view.loc["DAPO", "resampled_groups"] == 4.0


def test_one_seed_gives_a_gain_without_an_interval():
    frame = evaluation()
    row = miniature_lab_views.gain_view(frame[frame["run"] != "grpo-2"]).iloc[0]
    assert row["gain"] == pytest.approx(26 / 32 - 14 / 32)
    assert np.isnan(row["low"]) and np.isnan(row["high"]) and row["seeds"] == 1
