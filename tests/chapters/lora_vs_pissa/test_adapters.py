"""Estimates, frames and figures of adapters, on tables whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from tests.planted import planted_adapters, planted_masks
from tests.planted.planted_adapters import BEST, GRID, NORM_RATIO, RATE_RATIO
from tests.planted.planted_masks import RATES
from threegates import register
from threegates.chapters.lora_vs_pissa import estimates as adapters
from threegates.chapters.lora_vs_pissa import plots, views
from threegates.chapters.lora_vs_pissa.estimates import COLLAPSE_KL, FULL, NEITHER, collapsed
from threegates.chapters.lora_vs_pissa.views import STARTS


class Given:
    """Tables by name."""

    def __init__(self, **frames: pd.DataFrame) -> None:
        self.frames = frames

    def table(self, name: str) -> pd.DataFrame:
        return self.frames[name]


def tables(seeds: tuple[int, ...] = (1, 2, 3)) -> dict[str, pd.DataFrame]:
    """Adapters and full fine-tuning together, as a study has them."""
    parts = (planted_masks, planted_adapters)
    return {
        "evaluation": pd.concat([part.evaluation(seeds=seeds) for part in parts], ignore_index=True),
        "log": pd.concat([part.log(seeds) for part in parts], ignore_index=True),
    }


@pytest.fixture
def given():
    return tables()


@pytest.fixture
def runs(given):
    return views.runs_view(given["evaluation"], given["log"])


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# -------------------------------------------------------------------------------------------- collapse


def run_log(*kl: float) -> pd.DataFrame:
    """A log whose every second step is evaluated; between them the KL is wild."""
    values = [value for one in kl for value in (99.0, one)]
    passed = [value for _ in kl for value in (np.nan, 0.5)]
    return pd.DataFrame({"step": range(1, len(values) + 1), "kl": values, "pass_at_1": passed})


def test_a_healthy_run_has_not_collapsed():
    assert not collapsed(run_log(0.01, 0.05, 0.2), 0.6, 0.35)
    assert not collapsed(run_log(0.01, COLLAPSE_KL), 0.35, 0.35)


@pytest.mark.parametrize(
    ("kl", "final"), [((0.1, 1.2), 0.6), ((0.1, 0.2), 0.1), ((0.1, math.nan), 0.6), ((0.1, math.inf), 0.6)]
)
def test_a_planted_collapse_is_found(kl, final):
    assert collapsed(run_log(*kl), final, 0.35)


def test_a_run_that_came_back_has_not_collapsed_whatever_the_order_of_its_log():
    log = run_log(0.1, 2.0, 0.2)
    assert not collapsed(log, 0.6, 0.35)
    assert not collapsed(log.iloc[::-1], 0.6, 0.35)


def test_without_a_base_the_kl_alone_decides():
    assert not collapsed(run_log(0.1), 0.01, math.nan)
    assert collapsed(run_log(3.0), 0.99, math.nan)


def test_collapses_are_ratios_of_the_first_collapsing_rates_and_of_the_norms_there(runs):
    found = adapters.collapses(runs)
    assert len(found) == 9 and set(found["which"]) == {"both"}
    assert np.exp(found["log_rate"]).tolist() == pytest.approx([RATE_RATIO] * 9)
    assert np.exp(found["log_norm"]).tolist() == pytest.approx([NORM_RATIO] * 9)


def healed(runs: pd.DataFrame, *starts: str) -> pd.DataFrame:
    return runs.assign(collapsed=runs["collapsed"] & ~runs["init"].isin(starts))


def test_one_start_alone_counts_as_one_step_of_the_grid(runs):
    # The grid is .0003, .001, .003, .01: three steps from end to end.
    lora_healthy = adapters.collapses(healed(runs, "lora"))
    assert np.exp(lora_healthy["log_rate"]).tolist() == pytest.approx([(0.01 / 0.0003) ** (1 / 3)] * 9)
    assert set(lora_healthy["which"]) == {"pissa"}
    # Of LoRA's norm at collapse no more than a bound is known.
    assert lora_healthy["log_norm"].isna().all()
    pissa_healthy = adapters.collapses(healed(runs, "pissa"))
    assert np.exp(pissa_healthy["log_rate"]).tolist() == pytest.approx([(0.01 / 0.0003) ** (-1 / 3)] * 9)
    assert set(pissa_healthy["which"]) == {"lora"}


def test_where_neither_collapses_the_ratio_is_one_and_the_reason_says_so(given):
    log = given["log"].assign(kl=0.1)
    evaluation = given["evaluation"]
    evaluation = evaluation.assign(correct=evaluation["correct"].clip(lower=8 * 0.31))
    found = register.estimate("collapse_rate_lora_over_pissa", Given(evaluation=evaluation, log=log))
    assert (found.value, found.low, found.high, found.n) == (1, 1, 1, 3)
    assert found.reason == NEITHER
    found = register.estimate("collapse_norm_lora_over_pissa", Given(evaluation=evaluation, log=log))
    assert not found.has_interval and found.reason == NEITHER
    runs = views.runs_view(evaluation, log)
    assert "neither" in views.norm_reading(runs)


def test_what_the_norms_say_follows_from_the_runs(runs):
    # LoRA collapses between 1.5 and 2, PiSSA between its last healthy norm and 1.
    assert views.norm_reading(runs) == "PiSSA collapses earlier in the norm too"
    for start, other in (("pissa", "LoRA"), ("lora", "PiSSA")):
        told = views.norm_reading(healed(runs, start))
        assert told == f"only {other} collapsed on this grid"
    larger = runs.assign(delta_norm=runs["delta_norm"].where(runs["init"] != "pissa", 9.0))
    assert views.norm_reading(larger).startswith("PiSSA collapses no earlier")
    pissa = (runs["init"] == "pissa") & runs["collapsed"]
    near = runs.assign(delta_norm=runs["delta_norm"].where(~pissa, 1.8))
    assert "for LoRA over PiSSA anything between 0.83 and" in views.norm_reading(near)


@pytest.mark.parametrize("start", ["lora", "pissa"])
def test_norms_are_not_compared_where_one_start_alone_collapsed(given, monkeypatch, start):
    monkeypatch.setattr(adapters, "_runs", lambda tables: healed(views.runs_view(**tables.frames), start))
    found = register.estimate("collapse_norm_lora_over_pissa", Given(**given))
    other = {"lora": "pissa", "pissa": "lora"}[start]
    assert not found.has_interval and found.reason.startswith(f"{other} alone collapsed on the grid")


def test_the_ratio_of_norms_says_between_what_the_grid_leaves_it(given, runs):
    found = register.estimate("collapse_norm_lora_over_pissa", Given(**given))
    least, most = adapters.norm_bounds(adapters.collapses(runs))
    assert least < found.value <= most and f"between {least:.2g} and {most:.2g}" in found.reason
    assert least == pytest.approx(1.5 / 1.0)


def test_a_ratio_of_norms_that_the_grid_leaves_on_either_side_of_one_is_none(given, runs, monkeypatch):
    pissa = (runs["init"] == "pissa") & runs["collapsed"]
    near = runs.assign(delta_norm=runs["delta_norm"].where(~pissa, 1.8))
    monkeypatch.setattr(adapters, "_runs", lambda _: near)
    found = register.estimate("collapse_norm_lora_over_pissa", Given(**given))
    assert not found.has_interval and "anything between 0.83 and" in found.reason
    lowest = near[(near["init"] != "pissa") | (near["learning_rate"] > 0.001)]
    monkeypatch.setattr(
        adapters, "_runs", lambda _: lowest[(lowest["init"] != "pissa") | lowest["collapsed"]]
    )
    found = register.estimate("collapse_norm_lora_over_pissa", Given(**given))
    assert not found.has_interval and found.reason.endswith("anything above 0.83")
    assert adapters.between(0.0, 2.0) == "below 2"


def test_a_best_rate_at_the_end_of_the_grid_is_told(runs):
    told = views.at_the_edge(runs)
    judged = runs[(runs["algorithm"] == "grpo") & runs["rank"].notna()]
    for init, own in judged.groupby("init"):
        best = own.pivot_table(index="rank", columns="learning_rate", values="pass_at_1").idxmax(axis=1)
        lowest = best[best == own["learning_rate"].min()].index
        named = f"{views.STARTS[init]} is best at the lowest rate of the grid at rank"
        assert (named in told) == (len(lowest) > 0)
    inner = judged.assign(pass_at_1=-(np.log(judged["learning_rate"] / 0.003) ** 2))
    assert views.at_the_edge(inner) == ""


def test_one_rate_alone_has_no_step(runs):
    lone = runs[(runs["learning_rate"] == 0.003)]
    assert adapters.collapses(lone)["log_rate"].isna().all()


# ------------------------------------------------------------------------------------------- estimates


def test_runs_hold_the_last_evaluation_and_full_training_stands_among_them(given):
    runs = adapters.adapter_runs(given["evaluation"], given["log"]).set_index("run")
    one = runs.loc["lora-r8-0.003-s2"]
    assert (one["kl"], one["delta_norm"], one["rank"]) == (0.1, 1.5, 8) and not one["collapsed"]
    assert one["pass_at_1"] == pytest.approx(0.7 + 0.02 - 0.1)
    full = runs[runs["init"] == FULL]
    assert len(full) == 3 * len(RATES) and full["rank"].isna().all() and set(full["rate"]) == set(RATES)
    assert runs.loc["sft", "method"] == "sft"


def test_starts_are_compared_at_their_best_rate_and_over_all_ranks(given):
    expected = {
        "best_lora_minus_pissa": BEST["lora"] - BEST["pissa"],
        "best_lora_minus_milora": BEST["lora"] - BEST["milora"],
        "best_lora_minus_full": 0.0,
    }
    for name, value in expected.items():
        found = register.estimate(name, Given(**given))
        assert (found.value, found.n, found.unit) == (pytest.approx(value), 3, "seeds"), name


def test_a_rank_that_one_start_lacks_weighs_on_neither(given):
    """LoRA of rank 8 is better than of other ranks; without PiSSA of rank 8 the difference stays."""
    frame = given["evaluation"]
    frame = frame[~((frame["init"] == "pissa") & (frame["rank"] == "8"))]
    found = register.estimate("best_lora_minus_pissa", Given(evaluation=frame, log=given["log"]))
    assert found.value == pytest.approx(0.0)


def test_full_training_is_held_against_the_highest_rank_alone(given):
    frame = given["evaluation"].astype({"correct": float})
    lower = (frame["init"] == "lora") & (frame["rank"] != "32")
    frame.loc[lower, "correct"] = 8.0
    found = register.estimate("best_lora_minus_full", Given(evaluation=frame, log=given["log"]))
    assert found.value == pytest.approx(0.0)


def test_starts_that_were_not_run_are_named(given):
    bare = {
        "evaluation": planted_masks.evaluation().drop(columns=["mask", "share"]),
        "log": planted_masks.log(),
    }
    for name in adapters.ESTIMATES:
        found = register.estimate(name, Given(**bare))
        assert not found.has_interval and found.reason.startswith("no RL runs"), name
    without = given["evaluation"][given["evaluation"]["init"] != "milora"]
    found = register.estimate("best_lora_minus_milora", Given(evaluation=without, log=given["log"]))
    assert found.reason == "no RL runs of adapters that start as 'milora'"


def test_one_seed_gives_a_value_without_an_interval():
    one = Given(**tables((1,)))
    for name in adapters.ESTIMATES:
        found = register.estimate(name, one)
        assert math.isfinite(found.value) and not found.has_interval, name


# ------------------------------------------------------------------------------------- views and plots


def test_the_grid_has_intervals_and_counts_collapsed_runs(runs):
    grid = views.grid_view(runs)
    assert len(grid) == 3 * 3 * len(GRID) + len(RATES)
    assert list(dict.fromkeys(grid["init"])) == ["lora", "pissa", "milora", FULL]
    own = grid[(grid["init"] == "pissa") & (grid["rank"] == 2)].set_index("learning_rate")
    assert own["collapsed"].tolist() == [0, 0, 3, 3] and own["seeds"].eq(3).all()
    assert own.loc[0.003, "kl"] == pytest.approx(2.0)
    shown = views.grid_table(grid)
    assert "3 of 3" in set(shown["collapsed"]) and set(shown["start"]) < set(STARTS.values())
    assert set(shown["under"]) == {"GRPO"}


def test_other_objectives_stand_apart(given, runs):
    others = views.others_view(given["evaluation"], given["log"])
    assert others["run"].tolist() == ["dapo", "sft"] and not set(others["run"]) & set(runs["run"])
    shown = views.grid_table(views.grid_view(others))
    assert shown["under"].tolist() == ["DAPO", "SFT"] and shown["pass@1"].tolist() == [1.0, 1.0]
    assert views.grid_view(others.iloc[:0]).empty


def test_the_best_of_each_start_says_at_which_rates(runs):
    best = views.best_view(runs).set_index(["init", "rank"])
    assert best.loc[("milora", 32), "pass_at_1"] == pytest.approx(BEST["milora"])
    assert best.loc[("milora", 32), "rates"] == "0.001"
    assert views.best_table(best.reset_index())["start"].iloc[0] == "LoRA"
    assert views.start_rates(runs) == "0.0002"


def test_training_is_drawn_for_one_rank_beside_full_training(given, runs):
    assert views.shown_rank(runs) == 8
    assert views.shown_rank(runs[runs["rank"] != 8]) == 32
    assert views.shown_rank(runs[runs["init"] == FULL]) is None
    course = views.course_view(given["log"], 8)
    assert len(course) == 3 * 3 * len(GRID) * 2 + len(RATES) * 3 * 2 and set(course["step"]) == {2, 4}
    summary = views.course_summary(course)
    own = summary[(summary["init"] == "pissa") & (summary["learning_rate"] == 0.003) & (summary["step"] == 4)]
    assert own.set_index("measure")["value"].to_dict() == pytest.approx({"pass_at_1": 0.52, "kl": 2.0})


@pytest.mark.parametrize("seeds", [(1, 2, 3), (1,)])
def test_figures_are_drawn_from_several_seeds_and_from_one(recwarn, seeds):
    given = tables(seeds)
    runs = views.runs_view(**given)
    before = runs.copy(deep=True)
    plots.over_the_grid(runs, views.grid_view(runs), 0.3).canvas.draw()
    summary = views.course_summary(views.course_view(given["log"], 8))
    plots.learning_curves(summary, views.start_rates(runs)).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(runs, before)


def test_collapsed_runs_are_hollow_in_every_panel(runs):
    fig = plots.over_the_grid(runs, views.grid_view(runs), 0.3)
    for ax in fig.axes:
        fills = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() not in ("None", None)]
        assert len(fills) == len(runs)
        assert fills.count("white") == int(runs["collapsed"].sum()) == 9 * 4


def test_full_training_stands_in_every_column_of_the_curves(given, runs):
    summary = views.course_summary(views.course_view(given["log"], 8))
    fig = plots.learning_curves(summary, "0.0002")
    assert len(fig.axes) == 2 * len(GRID)
    for ax in fig.axes:
        assert [line.get_marker() for line in ax.lines].count("D") == 1
    alone = plots.learning_curves(summary[summary["init"] != FULL], None)
    assert all("D" not in [line.get_marker() for line in ax.lines] for ax in alone.axes)
