"""Plots of the chapters: each draws without a warning, and leaves its frame and the style of others alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from tests.planted import frames
from threegates.chapters.emergence import plots as emergence_plots
from threegates.chapters.miniature_lab import plots as miniature_lab_plots
from threegates.chapters.stripe_masks import plots as stripe_masks_plots
from threegates.chapters.update_sparsity import plots as update_sparsity_plots

FIGURES = {
    "sparsity_by_method": lambda: (update_sparsity_plots.sparsity_by_method, frames.sparsity(), {}),
    "consensus_maps": lambda: (stripe_masks_plots.consensus_maps, frames.consensus(), {"head_size": 32}),
    "stripes_against_nulls": lambda: (stripe_masks_plots.stripes_against_nulls, frames.stripes(), {}),
    "jaccard_heatmap": lambda: (
        stripe_masks_plots.jaccard_heatmap,
        frames.pairs_of_runs(),
        {"colours": frames.COLOURS},
    ),
    "jaccard_against_nulls": lambda: (stripe_masks_plots.jaccard_against_nulls, frames.nulls(), {}),
    "rate_correlations": lambda: (
        stripe_masks_plots.rate_correlations,
        frames.pairs_of_runs(),
        {"colours": frames.COLOURS},
    ),
    "ratios_over_training": lambda: (
        emergence_plots.ratios_over_training,
        frames.ratios(),
        {"head_size": 32},
    ),
    "emergence_correlation": lambda: (emergence_plots.emergence_correlation, frames.emergence(), {}),
    "learning_curves": lambda: (miniature_lab_plots.learning_curves, frames.log(), {}),
    "diagnostics": lambda: (
        miniature_lab_plots.learning_curves,
        frames.log(),
        {"curves": miniature_lab_plots.DIAGNOSTICS},
    ),
    "pass_rates": lambda: (miniature_lab_plots.pass_rates, frames.pass_rates(), {}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_plot_draws_without_warnings_and_leaves_its_frame_alone(name, recwarn):
    plot, frame, options = FIGURES[name]()
    before = frame.copy(deep=True)
    plot(frame, **options).canvas.draw()
    assert [str(w.message) for w in recwarn] == []
    pd.testing.assert_frame_equal(frame, before)


def test_a_plot_leaves_the_style_of_others_alone():
    before = dict(plt.rcParams)
    miniature_lab_plots.pass_rates(frames.pass_rates())
    assert dict(plt.rcParams) == before
