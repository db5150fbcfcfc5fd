from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.planted import pages
from threegates.book.values import rate_values, verdict_values
from threegates.chapters.emergence import views as emergence_views
from threegates.chapters.miniature_lab import views as miniature_lab_views
from threegates.chapters.stripe_masks import views as stripe_masks_views
from threegates.chapters.update_sparsity import views as update_sparsity_views
from threegates.figures import names
from threegates.figures.numbers import interval, number
from threegates.figures.style import METHOD_COLOURS
from threegates.judging.claims import read_claims
from threegates.measures.agreement import LONGEST_SIDE, _map_row
from threegates.pages.stated_values import stated_values


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


def test_values_of_the_lab_are_what_the_pages_quote():
    values = rate_values(
        miniature_lab_views.pass_view(evaluation()), miniature_lab_views.gain_view(evaluation())
    )
    assert values["base.pass@1"].startswith("0.438 [")
    assert values["base.prompts"] == "4"
    assert values["gain.GRPO"].startswith("0.469 [")


def test_every_value_of_the_pages_has_a_claim_or_is_the_labs():
    planted = set(verdict_values(pages.planted_verdicts()))
    lab = set(
        rate_values(miniature_lab_views.pass_view(evaluation()), miniature_lab_views.gain_view(evaluation()))
    ) | {
        "profile",
        "origin",
    }
    stated = set(stated_values(read_claims(pages.ROOT / "claims.yaml")))
    assert pages.quoted_keys() <= planted | lab | stated


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
    assert names.head_size(config) == expected


def test_a_method_the_study_does_not_know_keeps_its_name():
    assert names.method_name("dapo") == "DAPO"
    assert names.method_name("GRPO") == "GRPO"
    assert names.method_name("flow-grpo") == "flow-grpo"
    assert names.method_name(None) == "your pair"


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
    nulls = {f"{n}_mean": 1.0 for n in ("bernoulli", *names.DRAWN_NULLS)}
    rows = [("o", 1.0), ("o", 4.0), ("q", 3.0)]
    axis = pd.DataFrame(
        [{"method": "rl", "role": r, "axis": "row", "dispersion": d, **nulls} for r, d in rows]
    )
    view = stripe_masks_views.stripe_view(axis)
    assert list(view["role"]) == ["q", "o"]
    assert list(view["dispersion"]) == pytest.approx([3.0, 2.0])


def test_the_range_of_runs_is_that_of_their_mean_jaccards():
    nulls = {f"{n}_{e}": 0.5 for n in names.DRAWN_NULLS for e in ("mean", "low", "high")}
    pairs = [("a", "b", 0.6), ("a", "c", 0.8), ("b", "c", 0.7)]
    rows = [
        {"method": "rl", "role": "q", "run_a": a, "run_b": b, "jaccard": j, "bernoulli": 0.4, **nulls}
        for a, b, j in pairs
    ]
    row = stripe_masks_views.baseline_view(pd.DataFrame(rows)).iloc[0]
    assert (row["jaccard"], row["jaccard_low"], row["jaccard_high"]) == pytest.approx((0.7, 0.65, 0.75))


def test_numbers_are_written_for_people():
    assert number(0.123456) == "0.123"
    assert number(-0.5) == "−0.5"
    assert number(None) == number(float("nan")) == "–"
    assert interval(0.1, 0.25) == "[0.1, 0.25]"
    assert interval(float("nan"), 0.2) == "no interval"


# ------------------------------------------------------------------------------- labels and sparsities


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


FRAME = pd.DataFrame(
    {
        "pair": ["t", "g1", "g2", "x"],
        "method": ["sft", "rl", "rl", "rl"],
        "algorithm": ["sft-teacher", "grpo", "grpo", "flow-grpo"],
        "data": ["arith-4", "arith-4", "addsub-4", "arith-4"],
        "seed": pd.array([101, 101, 112, 7], dtype="Int64"),
    }
)
LABELS = {
    "t": "SFT (teacher) · arith-4 · 101",
    "g1": "GRPO · arith-4 · 101",
    "g2": "GRPO · addsub-4 · 112",
    "x": "flow-grpo · arith-4 · 7",
}


def test_runs_are_labelled_by_method_data_and_seed_once_each():
    assert names.run_labels(pd.concat([FRAME, FRAME])) == LABELS


def test_runs_of_reinforcement_learning_come_first_in_the_colour_of_their_method():
    colours = names.run_colours(FRAME)
    assert list(colours) == [LABELS[pair] for pair in ("g1", "g2", "x", "t")]
    assert colours[LABELS["g1"]] == colours[LABELS["g2"]] == METHOD_COLOURS["GRPO"]
    assert colours[LABELS["t"]] == METHOD_COLOURS["SFT (teacher)"]
    assert colours[LABELS["x"]] == "#000000"


# ------------------------------------------------------------------------------------ pairs of runs


def _agreement(*rows: tuple[str, str, str, str, float]) -> pd.DataFrame:
    """Rows (method, role, run_a, run_b, jaccard); each null lies a tenth lower than the one before."""
    out = []
    for method, role, a, b, jaccard in rows:
        row = {"method": method, "role": role, "run_a": a, "run_b": b, "jaccard": jaccard, "bernoulli": 0.4}
        for place, null in enumerate(names.DRAWN_NULLS):
            ends = {"mean": 0.0, "low": -0.02, "high": 0.03}
            row |= {f"{null}_{end}": jaccard - 0.1 * (place + 1) + d for end, d in ends.items()}
        out.append(row)
    return pd.DataFrame(out)


def test_jaccard_of_two_runs_is_the_mean_over_linear_matrices_alone():
    rows = _agreement(
        ("rl", "q", "g1", "g2", 0.6), ("rl", "down", "g1", "g2", 0.7), ("rl", "embedding", "g1", "g2", 0.0),
        ("rl", "q", "g1", "x", 0.5),
    )  # fmt: skip
    view = stripe_masks_views.jaccard_view(rows, FRAME)
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
    for place, null in enumerate(names.DRAWN_NULLS):
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
    view = stripe_masks_views.rates_view(rows, FRAME).set_index("axis")
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


# ----------------------------------------------------------------------------------------- emergence


def _emergence() -> pd.DataFrame:
    """Two runs of different length, two blocks; the correlation says where a row comes from."""
    rows = []
    for run, steps in (("a", (5, 20, 60)), ("b", (5, 40))):
        for step in steps:
            for role, axis in (("q", "row"), ("q", "column"), ("o", "row"), ("o", "column"), ("up", "row")):
                for layer in (0, 1):
                    rho = 1.0 if step == steps[-1] else step / 100 + 0.2 * layer + 10 * (axis == "column")
                    rows.append((run, step, role, axis, layer, rho, rho - 0.1, rho - 0.3, rho + 0.2))
    walk = [f"storage_path_{name}" for name in ("mean", "low", "high")]
    columns = ["run", "step", "role", "axis", "layer", "spearman_with_final", *walk]
    return pd.DataFrame(rows, columns=columns)


def test_correlations_leave_out_each_runs_own_last_step_and_the_other_axis():
    view = emergence_views.correlation_view(_emergence())
    assert set(zip(view["role"], view["run"], view["step"], strict=True)) == {
        (role, run, step) for role in "qo" for run, step in (("a", 5), ("a", 20), ("b", 5))
    }
    rows = view.set_index(["role", "run", "step"])
    # Mean over the two blocks; a column's ratio carries a ten.
    assert rows.loc[("q", "a", 20), "spearman"] == pytest.approx(0.3)
    assert rows.loc[("o", "a", 20), "spearman"] == pytest.approx(10.3)
    walk = rows.loc[("q", "b", 5), ["storage_path_mean", "storage_path_low", "storage_path_high"]]
    assert list(walk) == pytest.approx([0.05, -0.15, 0.35])


def test_ratios_are_those_of_one_run_and_block_at_every_step_along_the_axis_of_the_type():
    view = emergence_views.ratio_view(_emergence(), layer=1, run="a")
    assert set(zip(view["role"], view["axis"], strict=True)) == {("q", "row"), ("o", "column")}
    assert list(view["step"]) == [5, 5, 20, 20, 60, 60]
    assert set(view["run"]) == {"a"} and set(view["layer"]) == {1}


# --------------------------------------------------------------------------------------- the lab's logs


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


def test_two_steps_of_one_run_do_not_share_a_label():
    step = {"algorithm": "grpo", "data": "arith-4", "seed": 101}
    labels = names.run_labels(pd.DataFrame([{"pair": "a-step0010", **step}, {"pair": "a", **step}]))
    assert labels == {"a-step0010": "GRPO · arith-4 · 101 · a-step0010", "a": "GRPO · arith-4 · 101 · a"}


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


def test_rate_summary_sets_runs_on_the_same_data_apart():
    frame = pd.DataFrame({"pair": ["a", "b", "c"], "data": ["x", "x", "y"]})
    values = {("a", "b"): 0.9, ("a", "c"): 0.3, ("b", "c"): 0.5}
    facts = {"method": "rl", "role": "q", "axis": "row", "storage_density_mean": 0.2}
    rates = pd.DataFrame([facts | {"run_a": a, "run_b": b, "spearman": v} for (a, b), v in values.items()])
    found = stripe_masks_views.rate_summary(rates, frame).set_index("data")["spearman"]
    assert found["same data"] == pytest.approx(0.9) and found["different data"] == pytest.approx(0.4)


def test_runs_whose_data_nobody_knows_are_not_said_to_be_on_different_data():
    frame = pd.DataFrame({"pair": ["a", "b", "c"], "data": ["x", None, None]})
    facts = {"method": "rl", "role": "q", "axis": "row", "storage_density_mean": 0.2, "spearman": 0.5}
    rates = pd.DataFrame([facts | {"run_a": a, "run_b": b} for a, b in (("a", "b"), ("b", "c"))])
    assert views.rate_summary(rates, frame)["data"].tolist() == ["unknown data"]


def test_orientation_view_gives_the_spread_beyond_chance_of_both_axes():
    facts = {"pair": "p", "tensor": "t", "method": "rl", "role": "q", "density": 0.5}
    row = facts | {"axis": "row", "ratio": [0.5] * 10, "dispersion": 5.0, "storage_density_mean": 1.0}
    column = facts | {"axis": "column", "ratio": [0.5] * 40, "dispersion": 0.5, "storage_density_mean": 2.0}
    view = stripe_masks_views.orientation_view(pd.DataFrame([row, column])).iloc[0]
    # Rows have 40 entries, columns 10; below the binomial variance there is no excess.
    assert view["row"] == pytest.approx((4 * 0.25 / 40) ** 0.5) and view["column"] == 0
    assert view["row, null"] == 0 and view["column, null"] == pytest.approx((0.25 / 10) ** 0.5)
