"""The lens's frames hold what its tables hold, and bf16's own numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.planted import lens_frames
from threegates.chapters.precision_lens import views
from threegates.chapters.precision_lens.estimates import lens_totals


@pytest.fixture
def totals():
    return lens_totals(lens_frames.lens())


def test_relative_half_gaps_lie_between_two_powers_and_differ_at_powers_of_two():
    gaps, facts = views.gap_view(-2, 1), views.gap_facts()
    assert len(gaps) == 2 * 3 * 128 and gaps["relative"].between(2**-9, 2**-8).all()
    wide = gaps.pivot(index="weight", columns="side", values="relative")
    uneven = wide[wide["away from zero"] != wide["towards zero"]]
    assert uneven.index.tolist() == [0.25, 0.5, 1.0]
    assert (uneven["away from zero"] == 2**-8).all() and (uneven["towards zero"] == 2**-9).all()
    assert (facts["smallest"], facts["largest"]) == (2**-9, 2**-8)
    assert facts["values"] == 0x7F80 - 0x80 and facts["equalities"] == 254 == facts["uneven"] + 1


def test_paths_double_with_every_octave_and_a_float32_master_stays_near():
    first = views.first_step_view(1e-4, low=-4, high=0, limit=200)
    exact = first[(first["master"] == "float64") & (first["side"] == "away from zero")]
    assert exact.sort_values("weight")["step"].is_monotonic_increasing
    powers = exact[np.log2(exact["weight"]) % 1 == 0]["step"].tolist()
    assert powers == [np.ceil(2.0 ** (e - 8) / 1e-4) for e in (-4, -3, -2, -1)]
    ratio = views.float32_over_exact(first)
    assert len(ratio) == len(first) / 2 and ratio["ratio"].between(0.9, 1.1).all()


def test_a_path_that_is_too_long_has_no_step():
    first = views.first_step_view(1e-6, low=0, high=1, limit=3)
    assert first["step"].isna().all()


def test_the_middle_of_the_weights_leaves_out_the_tails():
    weights = pd.DataFrame({"part": "linear", "weight": [0.25, 0.5, 1.0], "share": [0.04, 0.92, 0.04]})
    assert views.middle(weights) == pytest.approx((0.5, 0.5 * 2**0.25))


def test_runs_with_float32_masters_are_followed_and_shares_are_of_all_weights(totals):
    shown = views.followed(totals)
    assert set(shown["run"]) == {"grpo-1", "grpo-2"}
    path = views.path_view(shown)
    changed = path[(path["measure"] == "changed in bf16") & (path["run"] == "grpo-1")].sort_values("updates")
    assert changed["share"].tolist() == pytest.approx([0.1, 0.25, 0.5])
    hidden = views.hidden_view(shown).query("run == 'grpo-1'").sort_values("updates")
    assert hidden["number"].tolist() == pytest.approx([0.9, 0.75, 0.5])
    assert hidden["energy"].tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert hidden["later"].iloc[0] == pytest.approx(0.4) and np.isnan(hidden["later"].iloc[-1])
    assert hidden["cosine"].between(-1, 1).all()


def test_without_a_learning_rate_nothing_is_said_of_what_an_update_could_reach(totals):
    known, unknown = (views.followed(totals.assign(learning_rate=rate)) for rate in (5e-6, np.nan))
    told, left = (set(views.path_view(shown)["measure"]) for shown in (known, unknown))
    assert told - left == {views.SHARES[name] for name in ("single_step", "aligned_path")}
    assert views.reachable(known).tolist() == pytest.approx([0.02] * len(known))
    assert views.reachable(unknown).isna().all()


def test_displacements_are_averaged_over_the_runs_of_a_checkpoint(totals):
    shown = views.followed(totals)
    view = views.ratio_view(lens_frames.bins(), shown)
    assert sorted(view["updates"].unique()) == [8, 16, 32]
    assert view.groupby("updates")["share"].sum().tolist() == pytest.approx([1.0] * 3)
    assert view.groupby("updates")["shown"].sum().tolist() == pytest.approx([0.1, 0.25, 0.5])


def test_groups_are_told_apart_by_method_rate_and_master(totals):
    last = views.ends(totals)
    assert set(last["group"]) == {
        "GRPO, lr 5e-06, float32 masters", "GRPO, lr 5e-06, pure bf16",
        "SFT (teacher), lr 3e-04, float32 masters",
    }  # fmt: skip
    assert len(last) == 5 and last["last"].all()
    sizes = views.size_view(lens_frames.bins(), last)
    assert set(sizes["group"]) == set(last["group"]) and sizes["share"].between(0, 1).all()
    summary = views.master_summary(last, views.course_view(lens_frames.log(), lens_frames.frame()))
    pure = summary.set_index("runs").loc["GRPO, lr 5e-06, pure bf16"]
    assert pure["seeds"] == 2 and pure["unchanged"] == pytest.approx(0.99)
    assert np.isnan(summary.set_index("runs").loc["SFT (teacher), lr 3e-04, float32 masters", "KL to base"])


def test_exceptions_are_counted_where_displacements_can_be_seen(totals):
    view = views.exceptions_view(totals).set_index("runs")
    assert "GRPO, lr 5e-06, pure bf16" not in view.index
    assert view.loc["GRPO, lr 5e-06, float32 masters", "checkpoints"] == 6


def test_a_pair_of_ones_own_is_followed_by_itself():
    own = lens_frames.lens().query("pair == 'grpo-1'")
    own = own.assign(algorithm=None, rate=None, master=None, learning_rate=np.nan, seed=pd.NA, updates=pd.NA)
    totals = lens_totals(own.astype({"algorithm": "str", "rate": "str", "master": "str"}))
    assert len(views.followed(totals)) == 1
    last = views.ends(totals)
    assert last["group"].tolist() == ["your pair"] and last["reachable"].isna().all()
    assert len(views.ratio_view(lens_frames.bins(), totals)) > 0


def test_a_figures_data_keep_their_panels_apart():
    both = views.together(a=pd.DataFrame({"x": [1]}), b=pd.DataFrame({"y": [2, 3]}))
    assert both["panel"].tolist() == ["a", "b", "b"] and both["y"].isna().tolist() == [True, False, False]
