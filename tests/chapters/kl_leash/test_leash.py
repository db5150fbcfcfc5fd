"""The KL leash: estimates on tables by hand, what the views say of them, and what is drawn."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests.planted import planted_leash
from tests.planted.planted_tables import SEEDS, Given, _facts
from threegates.chapters.kl_leash import estimates, plots
from threegates.chapters.kl_leash import views as leash_views
from threegates.register import estimate

VALUES = {
    "fisher_norm_bound_holds": 1.0,
    "kl_sft_over_rl": 4.0,
    "kl_sft_over_rl_equal_norm": 2.0,
    "kl_same_style_over_rl": 4.0,
    "kl_same_style_over_rl_equal_rate": 2.0,
    "kl_rft_over_rl": 2.0,
    "kl_without_over_with_term": 1.0,
}
RATIOS = {name: value for name, value in VALUES.items() if name.startswith("kl_")}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def log(seeds=SEEDS):
    base = {"run": "lab-base", "step": 300, "pass_at_1": 0.25, "kl": np.nan}
    return pd.DataFrame([*planted_leash.log_rows(_facts, seeds), base])


def found(name, rows, fisher=None):
    return estimate(
        name, Given({"log": rows, "fisher": planted_leash.fisher() if fisher is None else fisher})
    )


# --- estimates


@pytest.mark.parametrize("name", VALUES)
def test_what_was_planted_is_found(name):
    one = found(name, log())
    assert one.value == pytest.approx(VALUES[name]) and one.n == len(SEEDS) and one.unit == "seeds"
    assert one.scale == ("log" if name in RATIOS else "linear")


@pytest.mark.parametrize("name", VALUES)
def test_one_seed_has_a_value_and_no_interval(name):
    one = found(name, log(SEEDS[:1]))
    assert one.value == pytest.approx(VALUES[name]) and not one.has_interval
    assert one.reason == "one of the seeds gives no interval"


@pytest.mark.parametrize("name", VALUES)
def test_without_runs_there_is_a_reason(name):
    one = found(name, log().query("algorithm != algorithm"))
    assert one.n == 0 and one.reason


def test_runs_with_other_kl_terms_count_as_steps_but_not_as_ends():
    rows = log()
    assert estimates.rl_log(rows)["run"].nunique() == 5 * len(SEEDS)
    assert estimates.plain(rows)["run"].nunique() == 3 * len(SEEDS)
    bare = rows[rows["label_kl"].isna()].drop(columns=["label_kl", "estimator"])
    assert estimates.plain(bare)["run"].nunique() == 3 * len(SEEDS)
    assert estimates.with_weight(bare, "0").empty


def test_a_step_off_the_leash_is_counted_in_its_run():
    rows = log()
    rows.loc[(rows["run"] == "dapo-reward-1") & (rows["step"] == 3), "step_kl_response"] = 2.0
    assert found("leash_of_one_step_holds_response", rows).value == pytest.approx(1 - 0.1 / 5 / 3)


def test_a_bound_above_the_norm_of_all_weights_counts_neither_way():
    rows, fisher = log(), planted_leash.fisher()
    run = rows["run"] == "grpo-reward-1"
    rows.loc[run, ["step_norm", "step_kl_response"]] = [1e9, 1e6]
    bounded = estimates.bounded_steps(rows, fisher)
    assert bounded["vacuous"].sum() == planted_leash.STEPS and set(bounded["bound"].round(6)) == {
        2.0,
        14142.135624,
    }
    assert found("fisher_norm_bound_holds", rows).value == 1.0
    one = found("fisher_norm_bound_holds", rows, fisher.assign(norm=1.0))
    assert one.n == 0 and one.reason == "every bound is vacuous"


def run(norms, kls):
    return pd.DataFrame({"delta_norm": norms, "kl": kls})


@pytest.mark.parametrize(
    ("norm", "kl"), [(1.0, 0.01), (4.0, 0.16), (2.0, 0.04), (0.9, math.nan), (4.1, math.nan)]
)
def test_between_evaluations_kl_is_a_power_of_the_norm(norm, kl):
    assert estimates.at_norm(run([1.0, 4.0], [0.01, 0.16]), norm) == pytest.approx(kl, nan_ok=True)


def test_a_run_that_comes_back_counts_where_it_first_had_the_norm():
    assert estimates.at_norm(run([1.0, 2.0, 1.5, 4.0], [0.01, 0.04, 9.0, 0.16]), 2.0) == pytest.approx(0.04)
    assert math.isnan(estimates.at_norm(run([], []), 1.0))


def test_where_sft_was_past_rls_norm_when_first_evaluated_nothing_is_compared():
    rows = log()
    rows.loc[rows["algorithm"] == "sft-teacher", "delta_norm"] += 1
    one = found("kl_sft_over_rl_equal_norm", rows)
    assert one.n == 0 and "evaluated at a norm in common" in one.reason
    matched = leash_views.matched_view(rows)
    own = matched[matched["group"] == "each at its own rate"]
    assert own["ratio"].isna().all() and set(own["first_sft"]) == {2.0}
    # Runs at other rates, or on other text, do not stand in for them.
    assert matched.loc[matched["group"] == "in the base's own style", "ratio"].notna().all()
    told = leash_views.matched_summary(matched).set_index("runs")
    assert told.loc["each at its own rate", "compared"] == 0
    assert math.isnan(told.loc["each at its own rate", "SFT / RL"])
    assert told.loc["in the base's own style", "SFT / RL"] == pytest.approx(2.0)


def test_a_seed_counts_with_all_of_its_algorithms_or_not_at_all():
    rows = log()
    rows.loc[rows["run"] == "dapo-reward-1", "delta_norm"] /= 2
    assert found("kl_sft_over_rl_equal_norm", rows).n == len(SEEDS) - 1


# --- views


def test_geometric_means_leave_out_what_has_no_logarithm():
    one = leash_views.geometric([1.0, 4.0, -1.0, 0.0, math.nan])
    assert one["value"] == pytest.approx(2.0) and one["seeds"] == 2 and one["low"] < 2 < one["high"]
    assert leash_views.geometric_mean([3.0]) == pytest.approx(3.0)
    assert math.isnan(leash_views.geometric_mean([]))


def test_the_course_has_rl_at_every_step_and_the_others_at_evaluations():
    course = leash_views.course_view(log())
    runs = course.groupby("run").size()
    assert runs["grpo-reward-1"] == planted_leash.STEPS and runs["rft-reward-1"] == 2
    assert list(dict.fromkeys(course["method"])) == [
        "GRPO",
        "DAPO",
        "REINFORCE++",
        "RFT",
        "SFT (same style)",
        "SFT (teacher)",
    ]
    # SFT at its own rate has one evaluation more, at a norm between.
    assert set(leash_views.norm_view(log()).groupby("run").size()) == {2, 3}
    assert dict(leash_views.counts(log())) == {"rl": 15, "rft": 3, "sft": 3, "seeds": 3}


def test_ends_are_means_over_seeds_of_the_last_evaluations():
    ends = leash_views.end_summary(log()).set_index("method")
    assert ends.loc["SFT (teacher)", "value"] == pytest.approx(0.04)
    assert ends.loc["RFT", "delta_norm"] == pytest.approx(0.9) and set(ends["seeds"]) == {3}
    assert "KL to base" in leash_views.shown_ends(ends.reset_index())


def test_terms_come_from_none_to_large_and_their_ratios_are_over_each():
    view = leash_views.term_view(log())
    assert list(dict.fromkeys(view["term"])) == ["no KL term", "as the algorithm comes", "weight 0.04, k3"]
    ratios = leash_views.term_ratios(log()).groupby("term")["ratio"].mean()
    assert ratios["weight 0.04, k3"] == pytest.approx(1.0)
    assert ratios["as the algorithm comes"] == pytest.approx(np.exp(0.01))
    bare = log()[log()["label_kl"].isna()].drop(columns=["label_kl", "estimator"])
    assert set(leash_views.term_view(bare)["term"]) == {"as the algorithm comes"}
    assert leash_views.term_ratios(bare).empty


def test_the_slack_is_the_bound_over_the_step():
    slack = leash_views.slack(log())
    assert slack["steps"] == 150 and slack["token"] == slack["response"] == slack["loose"] == 1
    assert slack["ratio_token"] == pytest.approx(1000) and slack["least_response"] == pytest.approx(50)
    stepped = leash_views.step_view(log())
    assert set(stepped["measure"]) == set(leash_views.STEP_MEASURES.values())
    assert set(stepped["seeds"]) == {3} and len(stepped) == 3 * 3 * planted_leash.STEPS


def test_estimators_are_taken_at_the_ends():
    view = leash_views.estimator_view(log())
    grpo = view[view["method"] == "GRPO"].groupby("estimator")["kl"].mean()
    assert grpo["k2"] == pytest.approx(2 * grpo["k1"]) and grpo["k1"] == pytest.approx(grpo["k3"])
    spread = leash_views.estimator_spread(view).set_index("method")["spread"]
    assert spread["GRPO"] == pytest.approx(2) and spread["RFT"] == pytest.approx(1)
    negative = view.assign(kl=view["kl"].where(view["estimator"] != "k1", -1e-5))
    assert leash_views.estimator_spread(negative)["spread"].isna().all()


# --- figures


def drawn(name, rows):
    views = leash_views
    bounded = views.bound_view(rows, planted_leash.fisher())
    return {
        "training": lambda: plots.over_training(views.course_view(rows)),
        "norm": lambda: plots.over_norm(views.norm_view(rows)),
        "terms": lambda: plots.terms(views.term_view(rows), views.term_ratios(rows), (0.5, 2.0)),
        "step": lambda: plots.one_step(views.step_view(rows)),
        "fisher": lambda: plots.fisher_bound(bounded),
        "estimators": lambda: plots.estimators(views.estimator_view(rows)),
    }[name]()


NAMES = ("training", "norm", "terms", "step", "fisher", "estimators")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["seeds", "one seed"])
def test_a_plot_draws_without_warnings(name, seeds, recwarn):
    rows = log(seeds)
    before = rows.copy(deep=True)
    drawn(name, rows).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(rows, before)


def bands(fig):
    return sum(len(ax.collections) for ax in fig.axes)


def test_bands_are_drawn_over_seeds_alone():
    assert bands(drawn("training", log())) == 6 and bands(drawn("training", log(SEEDS[:1]))) == 0


def test_the_diagonal_of_the_fisher_figure_parts_what_holds():
    line = drawn("fisher", log()).axes[0].lines[0]
    assert list(line.get_xdata()) == list(line.get_ydata())


def test_estimates_that_are_not_positive_are_left_out(recwarn):
    view = leash_views.estimator_view(log())
    view["kl"] = view["kl"].where(view["estimator"] != "k1", -1e-5)
    plots.estimators(view).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
