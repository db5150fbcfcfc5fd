"""The drift figures draw what is in their frames."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tests.planted import frames
from threegates.chapters.spectral_drift import plots, views

FIGURES = {
    "by_method": lambda: (plots.drift_by_method, views.drift_view(frames.drift())),
    "by_matrix": lambda: (plots.drift_by_matrix, views.matrix_view(frames.drift())),
    "example": lambda: (
        plots.example_spectrum,
        views.example_view(frames.spectrum(), frames.drift()),
    ),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_draws_without_warnings_and_leaves_its_frame_alone(name, recwarn):
    plot, frame = FIGURES[name]()
    before = frame.copy(deep=True)
    plot(frame).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(frame, before)


def test_every_method_has_a_row_and_its_bound():
    view = views.drift_view(frames.drift())
    fig = plots.drift_by_method(view)
    labels = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert labels == list(dict.fromkeys(view["label"]))
    ticks = [line for line in fig.axes[2].lines if line.get_marker() == "|"]
    raw = view[view["variant"] == "raw"].groupby("label", sort=False)["nss_bound"].mean()
    assert [float(line.get_xdata()[0]) for line in ticks] == pytest.approx(raw.tolist())


def test_a_matrix_that_was_left_alone_is_a_gap_in_the_lines_and_no_stroke_to_minus_infinity():
    frame = views.matrix_view(frames.drift())
    alone = frame["position"] == frame["position"].min()
    measured = [*plots.MEASURES, "angle_limit", "nss_bound"]
    frame.loc[alone, measured] = 0.0
    for ax in plots.drift_by_matrix(frame).axes:
        heights = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.lines])
        assert np.nanmin(heights) > 0 and np.isnan(heights).any()


def test_the_floor_lies_under_the_angles_of_the_example():
    frame = views.example_view(frames.spectrum(), frames.drift())
    bottom = plots.example_spectrum(frame).axes[-1]
    assert bottom.get_yscale() == "log"
    floors = [patch.get_y() + patch.get_height() for patch in bottom.patches]
    assert floors == pytest.approx([np.degrees(1e-9)])


def test_angles_that_are_not_resolved_are_crossed_out():
    blurred = frames.spectrum().assign(angle_bound=0.015)
    frame = views.example_view(blurred, frames.drift())
    bottom = plots.example_spectrum(frame).axes[-1]
    crosses = [y for line in bottom.lines if line.get_marker() == "x" for y in line.get_ydata()]
    panel = frame[frame["panel"] == frame["panel"].iloc[-1]]
    assert sorted(crosses) == pytest.approx(sorted(panel.loc[~panel["resolved"], "number"]))
    assert crosses


def test_a_weight_that_did_not_move_is_drawn(recwarn):
    frame = views.example_view(frames.spectrum(), frames.drift())
    still = frame.assign(number=frame["number"].where(frame["quantity"].isin(["base", "value"]), 0.0))
    plots.example_spectrum(still.assign(floor=0.0, limit=0.0, resolved=False)).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
