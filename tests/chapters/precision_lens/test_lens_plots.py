"""The lens's figures draw what is in their frames."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.planted import lens_frames
from threegates.chapters.precision_lens import plots, views
from threegates.chapters.precision_lens.estimates import lens_totals


def totals():
    return lens_totals(lens_frames.lens())


def frames(name):
    bins = lens_frames.bins()
    shown, last = views.followed(totals()), views.ends(totals())
    weights = views.weight_view(bins)
    if name == "first":
        first = views.first_step_view(1e-3, low=-7, high=-4, limit=100)
        return plots.first_steps, [first, views.float32_over_exact(first), weights, 1e-3]
    return {
        "ulp": (plots.ulp_over_weights, [views.gap_view(-8, 0), weights]),
        "displacement": (plots.displacement, [views.ratio_view(bins, shown)]),
        "training": (plots.over_training, [views.path_view(shown), views.hidden_view(shown)]),
        "size": (plots.changed_by_size, [views.size_view(bins, last), 5e-6]),
        "masters": (
            plots.masters_compared,
            [last, views.course_view(lens_frames.log(), lens_frames.frame())],
        ),
    }[name]


NAMES = ("ulp", "first", "displacement", "training", "size", "masters")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", NAMES)
def test_a_plot_draws_without_warnings_and_leaves_its_frames_alone(name, recwarn):
    plot, given = frames(name)
    before = [one.copy(deep=True) if isinstance(one, pd.DataFrame) else one for one in given]
    plot(*given).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    for one, was in zip(given, before, strict=True):
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, was)


def test_the_displacement_says_how_much_is_visible():
    plot, given = frames("displacement")
    names = [text.get_text() for text in plot(*given).axes[0].get_legend().get_texts()]
    assert names == ["8 updates: 10% visible", "16 updates: 25% visible", "32 updates: 50% visible"]


def test_weights_that_moved_farther_than_the_last_bin_are_a_mark_and_no_peak_of_the_curve():
    shares = {0.5: 0.04, 1.0: 0.03, plots._LAST_RATIO: 0.01}
    rows = {"pair": "far", "updates": 8, "ratio": list(shares), "share": list(shares.values()), "shown": 0.01}
    ax = plots.displacement(pd.DataFrame(rows)).axes[0]
    curve, mark = (line.get_ydata().tolist() for line in ax.lines[:2])
    assert curve == [0.04, 0.03] and mark == [0.01] and ax.lines[1].get_marker() == ">"
    ax.figure.canvas.draw()
    ticks = [text.get_text() for text in ax.get_yticklabels()]
    assert len(ticks) == len(set(ticks)) > 3


def test_the_reach_of_one_update_ends_where_half_a_gap_exceeds_it():
    plot, given = frames("size")
    lines = [line for line in plot(*given).axes[0].lines if line.get_linestyle() == ":"]
    # Half a gap is 2⁻¹⁸ = 3.8e-6 below 2⁻⁹ and twice that above.
    assert [float(line.get_xdata()[0]) for line in lines] == [2.0**-9]


def test_a_run_of_unknown_learning_rate_has_no_line_along_zero_for_what_it_could_reach():
    shown = views.followed(totals().assign(learning_rate=float("nan")))
    fig = plots.over_training(views.path_view(shown), views.hidden_view(shown))
    names = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert names == [views.SHARES[name] for name in ("moved", "changed", "noise_changed")]


def test_one_checkpoint_without_steps_is_drawn_too(recwarn):
    own = lens_totals(lens_frames.lens().query("pair == 'grpo-1'").assign(updates=pd.NA))
    view = views.ratio_view(lens_frames.bins(), own)
    names = [t.get_text() for t in plots.displacement(view).axes[0].get_legend().get_texts()]
    assert names == ["tuned: 50% visible"] and [str(w.message) for w in recwarn] == []


def test_pure_bf16_is_open_and_masters_are_filled():
    plot, given = frames("masters")
    marks = [line for line in plot(*given).axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [
        master == "bfloat16" for master in given[0].drop_duplicates("group")["master"]
    ]
