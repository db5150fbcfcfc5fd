from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from tests.planted.frames import LABELS, OF_RUNS
from threegates.chapters.stripe_masks import views as stripe_masks_views
from threegates.jobs.nulls import FOUNDING
from threegates.measures.agreement import LONGEST_SIDE, _map_row

# Bernoulli's mean is the density itself.
DRAWN = [name for name in FOUNDING if name != "bernoulli"]


def test_consensus_of_a_long_matrix_comes_back_as_averages_over_its_blocks():
    """Held against the means of a mask's 2 × 2 blocks, which `rows` and `columns` count, not its entries."""
    mask = torch.rand(6, 2 * LONGEST_SIDE, generator=torch.Generator().manual_seed(1)) < 0.3
    facts = [{"method": "rl", "role": role} for role in ("q", "gate")]
    shown = stripe_masks_views.consensus_view(
        pd.DataFrame([_map_row(of, "observed", [mask]) for of in facts])
    )
    assert list(shown["role"]) == ["q"] and list(shown["block"]) == [2]
    expected = mask.numpy().reshape(3, 2, LONGEST_SIDE, 2).mean(axis=(1, 3))
    assert np.allclose(shown["consensus"].iloc[0], expected)


def test_stripes_are_geometric_means_in_the_order_of_a_block():
    nulls = {f"{n}_mean": 1.0 for n in FOUNDING}
    rows = [("o", 1.0), ("o", 4.0), ("q", 3.0)]
    axis = pd.DataFrame(
        [{"method": "rl", "role": r, "axis": "row", "dispersion": d, **nulls} for r, d in rows]
    )
    view = stripe_masks_views.stripe_view(axis)
    assert list(view["role"]) == ["q", "o"]
    assert list(view["dispersion"]) == pytest.approx([3.0, 2.0])


def test_the_range_of_runs_is_that_of_their_mean_jaccards():
    nulls = {f"{n}_{e}": 0.5 for n in DRAWN for e in ("mean", "low", "high")}
    pairs = [("a", "b", 0.6), ("a", "c", 0.8), ("b", "c", 0.7)]
    rows = [
        {"method": "rl", "role": "q", "run_a": a, "run_b": b, "jaccard": j, "bernoulli": 0.4, **nulls}
        for a, b, j in pairs
    ]
    row = stripe_masks_views.baseline_view(pd.DataFrame(rows)).iloc[0]
    assert (row["jaccard"], row["jaccard_low"], row["jaccard_high"]) == pytest.approx((0.7, 0.65, 0.75))


def _agreement(*rows: tuple[str, str, str, str, float]) -> pd.DataFrame:
    """Rows (method, role, run_a, run_b, jaccard); each null lies a tenth lower than the one before."""
    out = []
    for method, role, a, b, jaccard in rows:
        row = {"method": method, "role": role, "run_a": a, "run_b": b, "jaccard": jaccard, "bernoulli": 0.4}
        for place, null in enumerate(DRAWN):
            ends = {"mean": 0.0, "low": -0.02, "high": 0.03}
            row |= {f"{null}_{end}": jaccard - 0.1 * (place + 1) + d for end, d in ends.items()}
        out.append(row)
    return pd.DataFrame(out)


def test_jaccard_of_two_runs_is_the_mean_over_linear_matrices_alone():
    rows = _agreement(
        ("rl", "q", "g1", "g2", 0.6), ("rl", "down", "g1", "g2", 0.7), ("rl", "embedding", "g1", "g2", 0.0),
        ("rl", "q", "g1", "x", 0.5),
    )  # fmt: skip
    view = stripe_masks_views.jaccard_view(rows, OF_RUNS)
    assert list(view["run_a"]) == [LABELS["g1"]] * 2
    assert list(view["run_b"]) == [LABELS["g2"], LABELS["x"]]
    assert list(view["jaccard"]) == pytest.approx([0.65, 0.5])
    assert list(view["bernoulli"]) == pytest.approx([0.4, 0.4])


def test_baselines_are_means_over_all_pairs_with_each_method_and_type_apart():
    rows = _agreement(
        ("rl", "q", "a", "b", 0.6), ("rl", "q", "a", "c", 0.8), ("rl", "q", "b", "c", 0.7),
        ("rl", "v", "a", "b", 0.9), ("sft", "q", "s", "t", 0.3), ("rl", "norm", "a", "b", 0.1),
    )  # fmt: skip
    view = stripe_masks_views.baseline_view(rows).set_index(["group", "role"])
    assert list(view.index) == [("RL runs", "q"), ("RL runs", "v"), ("SFT runs", "q")]
    query = view.loc[("RL runs", "q")]
    for place, null in enumerate(DRAWN):
        mean = 0.7 - 0.1 * (place + 1)
        found = (query[null], query[f"{null}_low"], query[f"{null}_high"])
        assert found == pytest.approx((mean, mean - 0.02, mean + 0.03))
    # Run a has .6 and .8, run b .6 and .7, run c .8 and .7.
    assert (query["jaccard_low"], query["jaccard_high"]) == pytest.approx((0.65, 0.75))
    assert query["bernoulli"] == pytest.approx(0.4)
    assert view.loc[("SFT runs", "q"), "jaccard"] == pytest.approx(0.3)


def test_rates_keep_rows_and_columns_apart():
    rows = pd.DataFrame(
        [
            ("q", "g1", "g2", "row", 0.2),
            ("k", "g1", "g2", "row", 0.6),
            ("q", "g1", "g2", "column", -0.1),
            ("norm", "g1", "g2", "row", 1.0),
        ],
        columns=["role", "run_a", "run_b", "axis", "spearman"],
    )
    view = stripe_masks_views.rates_view(rows, OF_RUNS).set_index("axis")
    assert view["spearman"].to_dict() == pytest.approx({"row": 0.4, "column": -0.1})
    assert set(view["run_a"]) == {LABELS["g1"]} and set(view["run_b"]) == {LABELS["g2"]}


def test_consensus_is_of_one_method_the_drawn_matrices_and_the_asked_kinds():
    rows = [
        ("rl", "q", "observed"),
        ("rl", "q", "magnitude"),
        ("sft", "q", "observed"),
        ("rl", "up", "observed"),
    ]
    maps = pd.DataFrame(rows, columns=["method", "role", "kind"])
    maps = maps.assign(consensus=[[0.0, 1.0]] * 4, rows=1, columns=2, block=1)
    assert list(stripe_masks_views.consensus_view(maps)["kind"]) == ["observed"]
    assert list(stripe_masks_views.consensus_view(maps, "rl", ("observed", "magnitude"))["kind"]) == [
        "observed",
        "magnitude",
    ]
    assert len(stripe_masks_views.consensus_view(maps, "sft")) == 1


def test_rate_summary_sets_runs_on_the_same_data_apart():
    frame = pd.DataFrame({"pair": ["a", "b", "c"], "data": ["x", "x", "y"], "algorithm": "grpo"})
    values = {("a", "b"): 0.9, ("a", "c"): 0.3, ("b", "c"): 0.5}
    facts = {"method": "rl", "role": "q", "axis": "row", "storage_density_mean": 0.2}
    rates = pd.DataFrame([facts | {"run_a": a, "run_b": b, "spearman": v} for (a, b), v in values.items()])
    found = stripe_masks_views.rate_summary(rates, frame).set_index("data")["spearman"]
    assert found["same data"] == pytest.approx(0.9) and found["different data"] == pytest.approx(0.4)


def test_pairs_of_sft_runs_on_two_texts_are_a_group_of_their_own():
    rows = _agreement(
        ("sft", "q", "s", "t", 0.3), ("sft", "q", "s", "u", 0.9), ("rl", "q", "a", "b", 0.6)
    )  # fmt: skip
    texts = {"s": "teacher", "t": "style", "u": "teacher", "a": "grpo", "b": "dapo"}
    frame = pd.DataFrame([{"pair": pair, "algorithm": text} for pair, text in texts.items()])
    view = stripe_masks_views.baseline_view(rows, frame).set_index("group")["jaccard"]
    assert dict(view) == {"SFT runs, two texts": 0.3, "SFT runs, one text": 0.9, "RL runs": 0.6}
    alone = stripe_masks_views.baseline_view(rows, frame.assign(algorithm="teacher"))
    assert sorted(alone["group"]) == ["RL runs", "SFT runs"]


def test_two_texts_for_the_same_prompts_are_not_the_same_data():
    runs = {"a": ("x", "teacher"), "b": ("x", "teacher"), "c": ("x", "style"), "d": ("y", "style")}
    frame = pd.DataFrame([{"pair": p, "data": d, "algorithm": t} for p, (d, t) in runs.items()])
    values = {("a", "b"): 0.9, ("a", "c"): 0.1, ("b", "c"): 0.2, ("c", "d"): 0.6, ("a", "d"): 0.3}
    facts = {"method": "sft", "role": "q", "axis": "row", "storage_density_mean": 0.2}
    rates = pd.DataFrame([facts | {"run_a": a, "run_b": b, "spearman": v} for (a, b), v in values.items()])
    found = stripe_masks_views.rate_summary(rates, frame).set_index("data")["spearman"]
    assert dict(found.round(9)) == {
        "different data": 0.6,
        "different data and text": 0.3,
        "same data": 0.9,
        "same prompts, other text": 0.15,
    }


def test_runs_whose_data_nobody_knows_are_not_said_to_be_on_different_data():
    frame = pd.DataFrame({"pair": ["a", "b", "c"], "data": ["x", None, None], "algorithm": "grpo"})
    facts = {"method": "rl", "role": "q", "axis": "row", "storage_density_mean": 0.2, "spearman": 0.5}
    rates = pd.DataFrame([facts | {"run_a": a, "run_b": b} for a, b in (("a", "b"), ("b", "c"))])
    assert stripe_masks_views.rate_summary(rates, frame)["data"].tolist() == ["unknown data"]


def test_orientation_view_gives_the_spread_beyond_chance_of_both_axes():
    facts = {"pair": "p", "tensor": "t", "method": "rl", "role": "q", "density": 0.5}
    row = facts | {"axis": "row", "ratio": [0.5] * 10, "dispersion": 5.0, "storage_density_mean": 1.0}
    column = facts | {"axis": "column", "ratio": [0.5] * 40, "dispersion": 0.5, "storage_density_mean": 2.0}
    view = stripe_masks_views.orientation_view(pd.DataFrame([row, column])).iloc[0]
    # Rows have 40 entries, columns 10; below the binomial variance there is no excess.
    assert view["row"] == pytest.approx((4 * 0.25 / 40) ** 0.5) and view["column"] == 0
    assert view["row, null"] == 0 and view["column, null"] == pytest.approx((0.25 / 10) ** 0.5)
