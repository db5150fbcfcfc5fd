"""Estimates, frames and figures of sparse fine-tuning, on tables whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tests.planted import planted_masks
from threegates import register
from threegates.chapters.sparse_finetuning import estimates, plots, views
from threegates.chapters.sparse_finetuning.views import ARMS, MEASURES
from threegates.estimates.accuracy import base_accuracy, final_accuracy
from threegates.estimates.paper import exact_average, tables_4_and_5
from threegates.figures.style import PAPER
from threegates.judging import cards, claims
from threegates.records.provenance import project_root

PRINTED = views.printed_differences()


class Given:
    """Tables by name."""

    def __init__(self, **frames: pd.DataFrame) -> None:
        self.frames = frames

    def table(self, name: str) -> pd.DataFrame:
        return self.frames[name]


@pytest.fixture
def evaluation():
    return planted_masks.evaluation()


@pytest.fixture
def log():
    return planted_masks.log()


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# ------------------------------------------------------------------------------------------- estimates


def test_accuracy_is_the_share_of_right_samples_and_the_base_is_no_arm(evaluation):
    runs = final_accuracy(evaluation).set_index("run")
    assert len(runs) == (7 * len(planted_masks.RATES) + 1) * 3 and planted_masks.BASE not in runs.index
    assert runs.loc["mask-low-0.0001-0.5-s2", "pass_at_1"] == pytest.approx(0.6)
    assert base_accuracy(evaluation) == pytest.approx(0.3)
    assert math.isnan(base_accuracy(evaluation[evaluation["method"].notna()]))


def test_each_arm_is_taken_at_its_best_rate_and_another_share_is_left_out(evaluation):
    best = estimates.best_accuracy(evaluation)
    for mask, passed in planted_masks.ACCURACY.items():
        assert best[mask].tolist() == pytest.approx([passed] * 3), mask


def test_the_best_rate_may_differ_between_arms_and_seeds(evaluation):
    frame = evaluation.astype({"correct": float})
    one = (frame["mask"] == "low") & (frame["seed"] == 2) & (frame["rate"] == "0.0001")
    frame.loc[one, "correct"] += 8 * 0.2
    assert estimates.best_accuracy(frame)["low"].tolist() == pytest.approx([0.7, 0.8, 0.7])
    view = views.accuracy_view(frame)
    assert view.loc[view["mask"] == "low", "rate"].tolist() == ["0.0002", "0.0001", "0.0002"]


def test_differences_are_taken_within_a_seed(evaluation):
    """Seeds differ by far more than arms do; their differences are all alike."""
    by_seed = evaluation["seed"].map({1: 0.0, 2: 0.1, 3: 0.25}).fillna(0)
    given = Given(evaluation=evaluation.assign(correct=evaluation["correct"] + 8 * by_seed))
    found = register.estimate("accuracy_dense_minus_principal", given)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (found.n, found.unit) == (3, "seeds")


def test_kl_distance_is_a_mean_of_absolute_log_ratios_at_evaluations(log):
    distances = estimates.kl_distances(log)
    for mask, distance in planted_masks.DISTANCE.items():
        assert distances[mask].tolist() == pytest.approx([distance] * 3), mask


def test_a_kl_of_zero_has_no_ratio(log):
    start = log.assign(kl=log["kl"].where(log["step"] != 2, 0.0))
    ratios = estimates.kl_ratios(start)
    assert set(ratios["step"]) == {4} and np.isfinite(ratios["log_ratio"]).all()


def test_an_arm_that_was_not_run_is_named(evaluation, log):
    without = evaluation[evaluation["mask"] != "random"]
    found = register.estimate("accuracy_safe_minus_random", Given(evaluation=without))
    assert not found.has_interval and found.reason == "no RL runs under the mask 'random'"
    found = register.estimate("kl_distance_principal_minus_safe", Given(log=log[log["mask"] != "dense"]))
    assert not found.has_interval and "no RL runs" in found.reason


def test_runs_without_any_mask_give_no_estimate(evaluation, log):
    bare = [frame.drop(columns=["mask", "share"]) for frame in (evaluation, log)]
    for name in estimates.ESTIMATES:
        found = register.estimate(name, Given(evaluation=bare[0], log=bare[1]))
        assert not found.has_interval and found.reason.startswith("no RL runs"), name


def test_one_seed_gives_a_value_without_an_interval():
    given = Given(evaluation=planted_masks.evaluation(seeds=[1]), log=planted_masks.log([1]))
    for name in estimates.ESTIMATES:
        found = register.estimate(name, given)
        assert math.isfinite(found.value) and not found.has_interval
        assert found.reason == "one of the seeds gives no interval"


# ----------------------------------------------------------------------------------------------- views


def test_the_summary_has_intervals_over_seeds_and_paired_differences(evaluation):
    view = views.accuracy_view(evaluation)
    assert list(dict.fromkeys(view["mask"])) == list(ARMS)
    summary = views.accuracy_summary(view).set_index(["mask", "measure"])
    assert ("dense", "over_dense") not in summary.index
    assert summary.loc[("principal", "over_dense"), "value"] == pytest.approx(-0.1)
    assert summary.loc[("safe", "pass_at_1"), "seeds"] == 3
    lone = views.accuracy_summary(view[view["seed"] == 1])
    assert lone["value"].notna().all() and lone["low"].isna().all()


def test_training_is_drawn_at_the_rate_that_is_best_for_the_dense_run(evaluation, log):
    rate = views.course_rate(views.accuracy_view(evaluation))
    assert rate == "0.0002"
    course = views.course_view(log, rate)
    assert set(course["step"]) == {2, 4} and len(course) == 7 * 3 * 2
    summary = views.course_summary(course).set_index(["mask", "step", "measure"])["value"]
    assert summary["dense", 4, "kl"] == pytest.approx(0.04)
    away = planted_masks.DISTANCE["principal"]
    assert summary["principal", 2, "log_ratio"] == pytest.approx(math.exp(away))
    assert summary["principal", 4, "log_ratio"] == pytest.approx(math.exp(-away))
    assert summary["low", 4, "pass_at_1"] == pytest.approx(0.7)
    assert views.course_rate(pd.DataFrame({"mask": ["low"], "rate": ["1"]})) is None


def test_the_papers_averages_are_those_of_its_rows_and_ours_stand_beside_them(evaluation):
    shares = pd.DataFrame(
        {"mask": list(ARMS), "share": "0.5", "free_share": [1, 0.5, 0.5, 0.5859, 0.75, 0.75, 0.5]}
    )
    view = views.paper_view(views.accuracy_view(evaluation), shares).set_index("mask")
    for _, row in tables_4_and_5().iterrows():
        found = view.loc[row["mask"], f"paper, {row['steps']} steps"]
        assert found == pytest.approx(float(exact_average(row["scores"])))
    assert view.loc["M_princ", "minus dense, 320"] == pytest.approx(-3.625)
    assert view.loc["M_princ", "minus dense, ours"] == pytest.approx(-10)
    assert view.loc["M_low", ["ours, share", "paper, share"]].tolist() == pytest.approx([0.5859] * 2)
    assert math.isnan(view.loc["dense", "minus dense, 500"])


def test_every_cell_of_the_grid_is_listed_with_its_share(evaluation):
    cells = views.cells_view(evaluation)
    assert len(cells) == 7 * len(planted_masks.RATES) + 1 and cells["seeds"].eq(3).all()
    assert cells[cells["α"] == "0.25"]["pass@1"].tolist() == pytest.approx([0.99])
    assert cells[cells["mask"] == "dense"]["α"].isna().all()


def verdicts(frames):
    known = claims.read_claims(project_root() / "claims.yaml").of("sparse-finetuning")
    return claims.verdict_table(claims.judge(claim, Given(**frames), "planted") for claim in known)


def test_what_the_seeds_can_separate_comes_from_their_spread(evaluation, log):
    aside = evaluation["seed"].map({1: -0.08, 2: 0.0, 3: 0.08}) * (evaluation["mask"] == "principal")
    spread = evaluation.assign(correct=evaluation["correct"] + 8 * aside.fillna(0))
    found = views.resolution_view(verdicts({"evaluation": spread, "log": log})).set_index("claim")
    own = found.loc["Training principal weights alone is worse"]
    # Half the interval is t · s/√n; the 97.5 % point of two degrees of freedom is 4.303.
    assert own["half width"] == pytest.approx(4.30265 * 0.08 / math.sqrt(3), rel=1e-5)
    assert own["detectable"] > own["tolerance"] + 0.08
    # That a mask does as well as dense training is asked from one side: no worse by more than a margin.
    assert not found["equivalence"].any()
    assert found.loc["Training the safe mask matches dense training", "tolerance"] == -0.02


def test_rules_are_told_with_their_controls_and_without_results(evaluation, log):
    rules = cards.rule_view(verdicts({"evaluation": evaluation, "log": log})).set_index("claim")
    assert len(rules) == 6 and list(rules.columns) == ["measure", "rule", "control"]
    assert rules.loc["Training principal weights alone is worse", "control"].startswith("a random mask")
    assert rules["control"].notna().sum() == 2


def test_distances_of_kl_leave_the_dense_run_out(log):
    view = views.distance_view(log).set_index("mask")
    assert "dense" not in view.index
    assert view.loc["principal", "distance"] == pytest.approx(planted_masks.DISTANCE["principal"])


# ----------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize("seeds", [(1, 2, 3), (1,)])
def test_figures_are_drawn_from_several_seeds_and_from_one(recwarn, seeds):
    accuracy = views.accuracy_view(planted_masks.evaluation(seeds=seeds))
    before = accuracy.copy(deep=True)
    fig = plots.accuracy_by_arm(accuracy, views.accuracy_summary(accuracy), PRINTED, 0.3, 0.02)
    fig.canvas.draw()
    course = views.course_view(planted_masks.log(seeds), "0.0002")
    plots.over_training(views.course_summary(course)).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(accuracy, before)


def test_the_figure_of_accuracy_shows_every_seed_and_both_references():
    accuracy = views.accuracy_view(planted_masks.evaluation())
    summary = views.accuracy_summary(accuracy)
    left, right = plots.accuracy_by_arm(accuracy, summary, PRINTED, 0.3, 0.02).axes
    seeds = [line for line in left.lines if line.get_markerfacecolor() == "white"]
    assert [len(line.get_xdata()) for line in seeds] == [3] * 7
    vertical = [float(line.get_xdata()[0]) for line in left.lines if line.get_linestyle() in ("--", ":")]
    assert sorted(vertical) == pytest.approx([0.3, 0.7])
    assert [label.get_text() for label in left.get_yticklabels()] == list(ARMS.values())
    assert right.get_title(loc="left") == "minus dense, same seed"


def test_the_paper_s_differences_from_dense_stand_beside_ours():
    accuracy = views.accuracy_view(planted_masks.evaluation())
    fig = plots.accuracy_by_arm(accuracy, views.accuracy_summary(accuracy), PRINTED, 0.3, 0.02)
    marks = [line for line in fig.axes[1].lines if line.get_markeredgecolor() == PAPER["mec"]]
    drawn = sorted(float(x) for line in marks for x in line.get_xdata())
    # Means of the printed scores, in points below their dense run: five masks at 320 and at 500 steps.
    by_hand = [-3.62, -2.04, -0.75, -1.20, -2.10, -3.06, -1.48, -0.82, -0.21, -1.63]
    assert drawn == pytest.approx(sorted(gap / 100 for gap in by_hand), abs=2e-4)
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert {"the paper, 320 steps", "the paper, 500 steps"} <= legend


def test_a_run_that_diverged_leaves_a_gap_and_no_warning(recwarn):
    log = planted_masks.log()
    log["kl"] = log["kl"].where(log["mask"] != "low")
    summary = views.course_summary(views.course_view(log, "0.0002"))
    fig = plots.over_training(summary)
    fig.canvas.draw()
    assert len(fig.axes) == len(MEASURES) and [str(w.message) for w in recwarn] == []
