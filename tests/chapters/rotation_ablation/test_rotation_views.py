"""The rotation's estimates, views and figures on tables by hand."""

from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.planted import rotation_frames
from threegates.chapters.rotation_ablation import plots, views
from threegates.measures.rotation import BACK, RAW, ROTATED, UNTOUCHED
from threegates.register import estimate


class Given:
    """Tables given by hand."""

    def __init__(self, **tables):
        self.tables = tables

    def table(self, name):
        return self.tables[name]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# --- estimates


def given(**changes):
    return Given(rotation=rotation_frames.rotation(), frame=rotation_frames.frame(), **changes)


def test_losses_are_differences_within_a_seed_against_runs_of_other_seeds():
    expected = {
        "rotation_loss": 0.45,
        "rotation_loss_elsewhere": 0.01,
        "rotation_loss_rotated_back": 0.15,
    }
    for name, value in expected.items():
        found = estimate(name, given())
        # What seeds add is in both parts of a difference.
        assert (found.value, found.low, found.high) == pytest.approx((value, value, value)) and found.n == 3
    found = estimate("rotated_excess_jaccard", given())
    assert found.value == pytest.approx(0) and found.low < 0 < found.high and found.unit == "seeds"


def test_one_seed_has_no_estimate_and_says_why():
    tables = Given(rotation=rotation_frames.rotation(seeds=(1,)))
    for name in ("rotation_loss", "rotation_loss_elsewhere", "rotated_excess_jaccard"):
        found = estimate(name, tables)
        assert math.isnan(found.value) and "another seed" in found.reason and found.n == 0


def test_two_frames_of_one_seed_are_one_unit():
    one = rotation_frames.rotation()
    two = one.assign(pair=one["pair"] + "-hadamard", frame="hadamard", excess=one["excess"] + 0.1)
    tables = Given(rotation=pd.concat([one, two]))
    found = estimate("rotated_excess_jaccard", tables)
    assert found.n == 3 and found.value == pytest.approx(0.05)


def test_the_digits_are_those_of_the_matrix_that_moved_most():
    assert estimate("rotation_spectrum_digits", given()).value == pytest.approx(15)
    frame = rotation_frames.frame()
    frame.loc[3, "nss_exact"] = 1e-7
    found = estimate("rotation_spectrum_digits", Given(frame=frame))
    assert (found.low, found.high) == pytest.approx((7, 7)) and (found.n, found.unit) == (6, "matrices")
    equal = estimate("rotation_spectrum_digits", Given(frame=frame.assign(nss_exact=0.0)))
    assert equal.value == pytest.approx(53 * math.log10(2))
    assert not estimate("rotation_spectrum_digits", Given(frame=frame.iloc[:0])).has_interval


# --- views


def test_other_seeds_are_chosen_where_there_are_any():
    assert not views.chosen(rotation_frames.rotation())["same_seed"].any()
    alone = views.chosen(rotation_frames.rotation(seeds=(1,)))
    assert alone["same_seed"].all() and len(alone)


def test_a_matrix_has_one_value_a_comparison_and_seed_and_raw_order_only_where_heads_moved():
    shown = views.chosen(rotation_frames.rotation())
    view = views.matrix_view(shown, "excess")
    assert not view.duplicated(["layer", "role", "comparison", "seed"]).any()
    raw = view[view["comparison"] == RAW]
    assert set(zip(raw["layer"], raw["role"], strict=True)) == {(2, role) for role in "qkvo"}
    assert (view["null"] == 0).all() and list(view["role"].unique()[:4]) == ["q", "k", "v", "o"]
    overlap = views.matrix_view(shown, "overlap")
    lost = overlap[overlap["touched"] & (overlap["comparison"] == ROTATED)]
    assert lost["null"].unique() == pytest.approx([0.1]) and overlap["density"].unique() == pytest.approx(
        [0.3]
    )


def test_frames_are_averaged_within_a_seed():
    one = views.chosen(rotation_frames.rotation())
    two = one.assign(pair=one["pair"] + "-h", frame="hadamard", excess=one["excess"] + 0.1)
    both = views.matrix_view(pd.concat([one, two]), "excess")
    single = views.matrix_view(one, "excess")
    assert len(both) == len(single)
    assert (both["value"] - single["value"]).to_numpy() == pytest.approx(0.05)


def test_heads_lie_along_rows_of_v_and_columns_of_o():
    rows = views.chosen(rotation_frames.rotation()).assign(spearman_row=0.1, spearman_column=0.9)
    view = views.rates_view(rows)
    means = view.groupby(["role", "side"])["value"].mean()
    assert means.to_dict() == pytest.approx(
        {("v", "head"): 0.1, ("v", "residual"): 0.9, ("o", "head"): 0.9, ("o", "residual"): 0.1}
    )
    assert set(view["role"]) == {"v", "o"} and RAW not in set(view["comparison"])


def test_the_table_of_seeds_sets_equal_and_other_seeds_side_by_side():
    table = views.seeds_table(rotation_frames.rotation())
    found = table.set_index(["runs compared", "matrices", "comparison"])
    assert found.loc[("other seeds", "rotated V and O", UNTOUCHED), "excess"] == pytest.approx(0.45)
    assert found.loc[("same seed", "all others", ROTATED), "excess"] == pytest.approx(0.94)
    assert ("same seed", "rotated V and O", UNTOUCHED) not in found.index
    assert len(table) == 10 and (table["seeds"] == 3).all() and (table["low"] < table["high"]).all()
    alone = views.seeds_table(rotation_frames.rotation(seeds=(1,)))
    assert set(alone["runs compared"]) == {"same seed"} and alone["low"].isna().all()


def test_means_are_over_matrices_then_seeds():
    rows = views.chosen(rotation_frames.rotation())
    found = views.group_means(rows, "excess")
    assert found[True, BACK] == pytest.approx(0.3) and found[False, UNTOUCHED] == pytest.approx(0.45)


def test_the_spectrum_has_a_floor_and_both_stages():
    view = views.spectrum_view(rotation_frames.frame())
    assert len(view) == 12 and (view["nss"] >= views.FLOOR).all()
    stored = view[view["rotated"] & view["stage"].str.contains("stored")]
    assert (stored["nss"] == 1e-4).all()


def test_the_table_of_frames_takes_logit_gaps_from_the_base_s_log():
    row = views.frame_table(rotation_frames.frame(), rotation_frames.log()).iloc[0]
    assert list(row) == ["haar", 1e-15, 1e-4, 1e-14, 1e-2]
    bare = views.frame_table(rotation_frames.frame(), rotation_frames.log()[["run", "reward"]])
    assert bare["logit gap, float64"].isna().all() and bare["largest NSS, stored"].item() == 1e-4


# --- figures


def figures(seeds):
    shown = views.chosen(rotation_frames.rotation(seeds))
    return {
        "excess": (plots.excess_by_matrix, views.matrix_view(shown, "excess")),
        "overlap": (plots.overlap_by_matrix, views.matrix_view(shown, "overlap")),
        "rates": (plots.rates_by_side, views.rates_view(shown)),
        "spectrum": (plots.spectrum_kept, views.spectrum_view(rotation_frames.frame())),
    }


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)], ids=["one seed", "three seeds"])
@pytest.mark.parametrize("name", ["excess", "overlap", "rates", "spectrum"])
def test_a_plot_draws_without_warnings_and_leaves_its_frame_alone(name, seeds, recwarn):
    plot, view = figures(seeds)[name]
    before = view.copy(deep=True)
    plot(view).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(view, before)


def key(fig):
    return [text.get_text() for legend in fig.legends for text in legend.get_texts()]


def test_the_key_names_what_is_drawn_and_nothing_else():
    plot, view = figures((1, 2, 3))["excess"]
    names = key(plot(view))
    assert "against rotated, ΔW rotated back" in names and "storage null 1a" in names
    assert {"rotated", "heads permuted only"} <= set(names)
    plot, view = figures((1,))["rates"]
    names = key(plot(view))
    assert "untouched against untouched" not in names and "heads permuted only" not in names


def test_there_is_a_panel_a_block_and_a_mark_for_every_seed():
    plot, view = figures((1, 2, 3))["excess"]
    fig = plot(view)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["Block 0", "Block 1", "Block 2"]
    tint = plots.LOOKS[ROTATED][0]
    marks = [line for line in fig.axes[0].lines if line.get_color() == tint and len(line.get_xdata()) == 3]
    assert len(marks) == view["role"].nunique()


def test_intervals_are_drawn_with_several_seeds_alone():
    def intervals(seeds):
        plot, view = figures(seeds)["rates"]
        lines = [line for ax in plot(view).axes for line in ax.lines]
        return [line for line in lines if line.get_linewidth() == 2.0 and len(line.get_xdata()) == 2]

    assert intervals((1, 2, 3)) and not intervals((1,))
