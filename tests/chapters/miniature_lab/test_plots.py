"""Plots of the lab's logs."""

from __future__ import annotations

from tests.planted import frames
from threegates.chapters.miniature_lab import plots as miniature_lab_plots


def test_a_quantity_that_was_not_logged_has_no_panel():
    fig = miniature_lab_plots.learning_curves(frames.log().drop(columns="kl"))
    titles = [ax.get_title("left") for ax in fig.axes if ax.axison]
    assert len(titles) == len(miniature_lab_plots.CURVES) - 1
    assert miniature_lab_plots.CURVES["kl"][0] not in titles
