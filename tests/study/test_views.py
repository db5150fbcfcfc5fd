from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.study import pages
from threegates.study import views
from threegates.study.cards import interval, number
from threegates.study.values import rate_values, verdict_values


def evaluation() -> pd.DataFrame:
    """A base and two seeds of one algorithm on four prompts, eight samples each."""
    correct = {
        ("base", None, None): [0, 2, 4, 8],
        ("grpo-1", "grpo", 1): [4, 6, 8, 8],
        ("grpo-2", "grpo", 2): [8, 8, 8, 8],
    }
    rows = [
        {"run": run, "algorithm": algorithm, "seed": seed, "prompt": i, "samples": 8, "correct": c}
        for (run, algorithm, seed), counts in correct.items()
        for i, c in enumerate(counts)
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def test_pass_rates_have_students_and_wilsons_intervals():
    rates = views.pass_view(evaluation()).set_index(["run", "measure"])
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
    gain = views.gain_view(evaluation()).iloc[0]
    gains = [26 / 32 - 14 / 32, 1 - 14 / 32]
    student = stats.ttest_1samp(gains, 0).confidence_interval(0.95)
    assert gain["gain"] == pytest.approx(np.mean(gains))
    assert (gain["low"], gain["high"]) == pytest.approx((student.low, student.high))
    assert gain["seeds"] == 2


def test_values_of_the_lab_are_what_the_pages_quote():
    values = rate_values(views.pass_view(evaluation()), views.gain_view(evaluation()))
    assert values["base.pass@1"].startswith("0.438 [")
    assert values["base.prompts"] == "4"
    assert values["gain.GRPO"].startswith("0.469 [")


def test_every_value_of_the_pages_has_a_claim_or_is_the_labs():
    planted = set(verdict_values(pages.planted_verdicts()))
    lab = set(rate_values(views.pass_view(evaluation()), views.gain_view(evaluation()))) | {"profile"}
    assert pages.quoted_keys() <= planted | lab


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"head_dim": 128, "hidden_size": 2560, "num_attention_heads": 32}, 128),
        ({"hidden_size": 128, "num_attention_heads": 4}, 32),
        ({"head_dim": None, "hidden_size": 128, "num_attention_heads": 4}, 32),
        ({"hidden_size": 128}, None),
    ],
)
def test_the_size_of_a_head_comes_from_the_config(config, expected):
    assert views.head_size(config) == expected


def test_a_method_the_study_does_not_know_keeps_its_name():
    assert views.method_name("dapo") == "DAPO"
    assert views.method_name("GRPO") == "GRPO"
    assert views.method_name("flow-grpo") == "flow-grpo"
    assert views.method_name(None) == "your pair"


def test_consensus_comes_back_in_the_shape_of_its_blocks():
    flat = np.arange(6) / 6
    maps = pd.DataFrame(
        {
            "role": ["q", "gate"],
            "kind": ["observed", "observed"],
            "method": ["rl", "rl"],
            "consensus": [flat.tolist(), flat.tolist()],
            "rows": [3, 3],
            "columns": [5, 5],
            "block": [2, 2],
        }
    )
    shown = views.consensus_view(maps)
    assert list(shown["role"]) == ["q"]
    assert np.array_equal(shown["consensus"].iloc[0], flat.reshape(2, 3))


def test_stripes_are_geometric_means_in_the_order_of_a_block():
    nulls = {f"{n}_mean": 1.0 for n in ("bernoulli", *views.DRAWN_NULLS)}
    rows = [("o", 1.0), ("o", 4.0), ("q", 3.0)]
    axis = pd.DataFrame(
        [{"method": "rl", "role": r, "axis": "row", "dispersion": d, **nulls} for r, d in rows]
    )
    view = views.stripe_view(axis)
    assert list(view["role"]) == ["q", "o"]
    assert list(view["dispersion"]) == pytest.approx([3.0, 2.0])


def test_the_range_of_runs_is_that_of_their_mean_jaccards():
    nulls = {f"{n}_{e}": 0.5 for n in views.DRAWN_NULLS for e in ("mean", "low", "high")}
    pairs = [("a", "b", 0.6), ("a", "c", 0.8), ("b", "c", 0.7)]
    rows = [
        {"method": "rl", "role": "q", "run_a": a, "run_b": b, "jaccard": j, "bernoulli": 0.4, **nulls}
        for a, b, j in pairs
    ]
    row = views.baseline_view(pd.DataFrame(rows)).iloc[0]
    assert (row["jaccard"], row["jaccard_low"], row["jaccard_high"]) == pytest.approx((0.7, 0.65, 0.75))


def test_numbers_are_written_for_people():
    assert number(0.123456) == "0.123"
    assert number(-0.5) == "−0.5"
    assert number(None) == number(float("nan")) == "–"
    assert interval(0.1, 0.25) == "[0.1, 0.25]"
    assert interval(float("nan"), 0.2) == "no interval"
