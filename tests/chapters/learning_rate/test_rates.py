"""Learning rates and optimisers: estimates on tables by hand, and what their figures draw."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests.planted import planted_rates
from tests.planted.planted_tables import SEEDS, Given, _facts, baseline
from threegates.chapters.learning_rate import estimates, plots, views
from threegates.register import estimate

NAMES = ("sparsity_fall_at_ten_times_rate", "sparsity_sgd_minus_adamw", "sparsity_sgd_minus_adamw_equal_norm")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def tables():
    """The planted tables without a trace of other chapters, and a run in pure bf16 in every seed."""
    tensor, log = baseline()["tensor"], baseline()["log"]
    tensor = tensor[(tensor["algorithm"] == "grpo") & (tensor["rate"] != "theirs")]
    pure = tensor[tensor["rate"] == "mask"].assign(master="bfloat16", sparsity=0.99, norm_delta=1e-3)
    pure = pure.assign(pair=pure["pair"] + "-pure", run=pure["run"] + "-pure")
    base = pd.DataFrame([{"run": "lab-base", "step": 300, "pass_at_1": 0.25}])
    log = log[
        log["algorithm"].eq("grpo") & log["rate"].isin({"mask", *(run[0] for run in planted_rates.RUNS)})
    ]
    return {"tensor": pd.concat([tensor, pure]), "log": pd.concat([log, base])}


def found(name, frames):
    return estimate(name, Given(frames))


def runs(frames=None):
    frames = frames or tables()
    return views.run_view(frames["tensor"], frames["log"])


# --- estimates


@pytest.mark.parametrize(("name", "value"), list(zip(NAMES, (0.39, 0.1, 0.1), strict=True)))
def test_what_was_planted_is_found_whatever_pure_bf16_does(name, value):
    one = found(name, tables())
    assert one.value == pytest.approx(value) and one.n == len(SEEDS) and one.unit == "seeds"


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_has_a_value_and_no_interval(name):
    one = found(name, {key: frame[frame["seed"] == 1] for key, frame in tables().items()})
    assert math.isfinite(one.value) and not one.has_interval
    assert one.reason == "one of the seeds gives no interval"


@pytest.mark.parametrize(
    ("name", "reason"),
    list(zip(NAMES, ("at ten times it", "no seed with runs", "no seed with runs"), strict=True)),
)
def test_without_the_other_runs_there_is_a_reason(name, reason):
    frames = tables()
    frames["tensor"] = frames["tensor"][frames["tensor"]["rate"] == "mask"]
    frames["tensor"] = frames["tensor"].drop(columns=["optimiser", "master"])
    one = found(name, frames)
    assert one.n == 0 and reason in one.reason


def sgd(norms, passes, levels):
    return pd.DataFrame({"norm": norms, "pass_at_1": passes, "sparsity": levels})


def test_of_two_runs_as_near_in_gain_the_nearer_in_norm_counts():
    own = pd.Series({"norm": 2.0, "pass_at_1": 0.5})
    assert estimates.at_equal_pass(sgd([1.0, 9.0], [0.4, 0.6], [0.7, 0.2]), own) == 0.7
    assert estimates.at_equal_pass(sgd([1.0, 9.0], [0.4, 0.55], [0.7, 0.2]), own) == 0.2
    assert math.isnan(estimates.at_equal_pass(sgd([1.0], [np.nan], [0.7]), own))


@pytest.mark.parametrize(
    ("norm", "level"), [(2.0, 0.6), (4.0, 0.4), (0.7, 0.8), (5.9, 0.4), (0.6, math.nan), (6.1, math.nan)]
)
def test_between_norms_sparsity_is_linear_in_the_logarithm_and_beyond_them_that_of_the_nearest(norm, level):
    curve = sgd([4.0, 1.0], [0.5, 0.5], [0.4, 0.8])
    value = estimates.at_equal_norm(curve, pd.Series({"norm": norm}))
    assert value == pytest.approx(level, nan_ok=True)


def test_where_no_norm_is_near_the_estimate_says_so():
    frames = tables()
    far = frames["tensor"]["optimiser"].eq("sgd")
    frames["tensor"].loc[far, "norm_delta"] = 50.0
    one = found(NAMES[2], frames)
    assert one.n == 0 and "comes near AdamW's norm" in one.reason
    assert found(NAMES[1], frames).n == len(SEEDS)


# --- views


def test_a_run_has_its_group_its_whole_norm_and_its_last_evaluation():
    view = runs()
    assert list(dict.fromkeys(view["group"])) == ["AdamW", "SGD", "AdamW, pure bf16"]
    mask = view[(view["group"] == "AdamW") & (view["rate"] == "mask")]
    assert mask["norm"].tolist() == pytest.approx([planted_rates.NORM] * len(SEEDS))
    assert set(mask["pass_at_1"]) == {planted_rates.PASS}
    wanted = math.sqrt(planted_rates.PASS * (1 - planted_rates.PASS) / views.PROMPTS)
    assert mask["pass_error"].tolist() == pytest.approx([wanted] * len(SEEDS))


def test_the_summary_is_over_seeds_and_keeps_pure_bf16_apart():
    summary = views.rate_summary(runs())
    assert len(summary) == 1 + len(planted_rates.RUNS) + 1
    assert set(summary["seeds"]) == {len(SEEDS)}
    assert set(summary.columns) - set(views.shown_summary(summary).columns) >= {"norm", "kl"}
    assert summary.set_index("group").loc["AdamW, pure bf16", "sparsity"] == pytest.approx(0.99)


def test_the_numbers_of_the_prose():
    view = runs()
    ten = views.tenfold(view)
    assert ten["sparsity"].tolist() == pytest.approx([0.69] * 3)
    assert ten["sparsity_tenfold"].tolist() == pytest.approx([0.3] * 3)
    assert views.norms_apart(view) == pytest.approx(1.0)
    assert -1 <= views.norm_order(view) < -0.8
    assert views.base_pass(tables()["log"]) == 0.25
    alone = view[view["group"] == "AdamW, pure bf16"]
    assert math.isnan(views.norm_order(alone)) and math.isnan(views.norms_apart(alone))
    assert views.tenfold(alone).empty


def test_a_log_without_a_base_has_no_pass_rate_of_it():
    log = tables()["log"]
    assert math.isnan(views.base_pass(log[log["algorithm"].notna()]))


def test_a_pair_without_labels_is_adamw_with_masters():
    frames = tables()
    plain = frames["tensor"][frames["tensor"]["rate"] == "mask"].query("master != 'bfloat16'")
    view = runs({"tensor": plain.drop(columns=["optimiser", "master"]), "log": frames["log"]})
    assert set(view["group"]) == {"AdamW"} and set(view["seed"]) == set(SEEDS)


# --- figures


def drawn(name, view):
    return {
        "rate": lambda: plots.by_rate(view, views.rate_summary(view)),
        "norm": lambda: plots.by_norm(view),
        "pass": lambda: plots.by_pass(view, 0.25),
    }[name]()


@pytest.mark.parametrize("name", ["rate", "norm", "pass"])
@pytest.mark.parametrize("seeds", [SEEDS, SEEDS[:1]], ids=["seeds", "one seed"])
def test_a_plot_draws_without_warnings_and_leaves_its_frame_alone(name, seeds, recwarn):
    view = runs()
    view = view[view["seed"].isin(seeds)]
    before = view.copy(deep=True)
    drawn(name, view).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(view, before)


@pytest.mark.parametrize("name", ["rate", "norm", "pass"])
def test_a_chapter_with_one_optimiser_is_drawn_too(name, recwarn):
    fig = drawn(name, runs().query("group == 'AdamW'"))
    fig.canvas.draw()
    assert len(fig.axes) == 1 and [str(w.message) for w in recwarn] == []


def test_pure_bf16_is_open_named_and_left_out_where_runs_are_compared():
    names = {
        n: [t.get_text() for t in drawn(n, runs()).legends[0].get_texts()] for n in ("rate", "norm", "pass")
    }
    assert any("not comparable" in text for text in names["rate"])
    assert any("not comparable" in text for text in names["norm"])
    assert names["pass"] == ["AdamW", "SGD"]


def test_facts_of_the_planted_runs_tell_them_apart():
    rows = planted_rates.tensor_rows(_facts, SEEDS)
    assert len({row["pair"] for row in rows}) == len(planted_rates.RUNS) * len(SEEDS)
