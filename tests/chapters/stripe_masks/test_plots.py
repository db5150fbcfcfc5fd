from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.planted import frames
from threegates.chapters.emergence import plots as emergence_plots
from threegates.chapters.miniature_lab import plots as miniature_lab_plots
from threegates.chapters.stripe_masks import plots as stripe_masks_plots
from threegates.chapters.update_sparsity import plots as update_sparsity_plots
from threegates.estimates import intervals

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


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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


def test_the_interval_is_students():
    x = [0.31, 0.35, 0.42, 0.30]
    expected = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    assert intervals.t_interval([*x, np.nan]) == pytest.approx((np.mean(x), expected.low, expected.high))
    assert intervals.t_interval([0.3])[0] == 0.3
    assert np.isnan(intervals.t_interval([0.3])[1:]).all()


def test_smoothing_is_a_centred_mean_that_shortens_at_the_ends():
    ratio = np.random.default_rng(0).uniform(size=17)
    expected = pd.Series(ratio).rolling(3, center=True, min_periods=1).mean()
    assert emergence_plots.smoothed(ratio, 3) == pytest.approx(expected.to_numpy())


def test_sparsity_draws_each_seed_its_null_and_the_papers_ranges():
    frame = frames.sparsity()
    ax = update_sparsity_plots.sparsity_by_method(frame).axes[0]
    dots = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections])
    assert sorted(dots) == pytest.approx(sorted([*frame["sparsity"], *frame["sparsity_fp32"]]))
    lines = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    upright = [x[0] for x in lines if x[0] == x[1]]
    assert sorted(upright) == pytest.approx(sorted(frame.groupby("label")["sparsity_storage_norm"].mean()))
    assert [t.get_text() for t in ax.get_yticklabels()] == list(dict.fromkeys(frame["label"]))
    assert {t.get_text() for t in ax.texts} == {"paper: SFT", "paper: RL"}


def test_maps_have_the_ratios_of_their_rows_and_columns_at_the_edges():
    frame = frames.consensus()
    fig = stripe_masks_plots.consensus_maps(frame)
    bodies = [ax for ax in fig.axes if ax.images]
    assert len(bodies) == len(frame)
    shown = {ax.images[0].get_array().shape for ax in bodies}
    assert shown == {a.shape for a in frame["consensus"]}
    assert all(ax.images[0].get_clim() == (0, 1) for ax in bodies)


@pytest.mark.parametrize(("block", "expected"), [(1, 3), (2, 7)])
def test_head_borders_follow_the_size_of_a_head_in_blocks(block, expected):
    frame = frames.consensus().assign(block=block)
    fig = stripe_masks_plots.consensus_maps(frame, head_size=32)
    query = next(ax for ax in fig.axes if ax.images)
    assert len(query.lines) == expected


def test_each_map_has_the_heads_and_the_title_of_its_own_matrix():
    """A long Q is averaged over squares and a short K is not: four heads of 32 rows and two of them."""
    frame = frames.consensus().query("kind == 'observed'")
    frame = frame.assign(block=[2 if role == "q" else 1 for role in frame["role"]])
    frame.loc[frame["role"] == "q", "consensus"] = [np.full((64, 64), 0.5)]
    fig = plots.consensus_maps(frame.reset_index(drop=True), head_size=32)
    bodies = [ax for ax in fig.axes if ax.images]
    borders = {role: len(ax.lines) for role, ax in zip(("q", "k", "v", "o", "down"), bodies, strict=True)}
    assert borders == {"q": 3, "k": 1, "v": 1, "o": 3, "down": 0}
    titles = [ax.get_title(loc="left") for ax in fig.axes if ax.get_title(loc="left")]
    assert titles[:2] == ["Q  64 × 64\nmeans of 2 × 2", "K  64 × 128"]


def test_a_matrix_of_runs_is_symmetric_and_has_no_diagonal():
    square = stripe_masks_plots._symmetric(frames.pairs_of_runs(), "jaccard", list(frames.RUNS))
    assert np.isnan(np.diag(square)).all()
    assert np.array_equal(square, square.T, equal_nan=True)
    assert square.notna().sum().sum() == len(frames.RUNS) * (len(frames.RUNS) - 1)


def test_every_matrix_type_shows_all_four_baselines():
    frame = frames.nulls()
    ax = stripe_masks_plots.jaccard_against_nulls(frame).axes[0]
    points = {round(line.get_xdata()[0], 9) for line in ax.lines if len(line.get_xdata()) == 1}
    rows = frame[frame["group"] == "RL runs"]
    for column in ("jaccard", *stripe_masks_plots.NULLS):
        assert {round(v, 9) for v in rows[column]} <= points


def test_ratios_stand_in_the_order_of_a_block():
    shuffled = frames.ratios().sample(frac=1, random_state=0)
    titles = [ax.get_title("left") for ax in emergence_plots.ratios_over_training(shuffled).axes]
    assert titles == ["Q: row ratios", "K: row ratios", "V: row ratios", "O: column ratios"]


def test_a_quantity_that_was_not_logged_has_no_panel():
    fig = miniature_lab_plots.learning_curves(frames.log().drop(columns="kl"))
    titles = [ax.get_title("left") for ax in fig.axes if ax.axison]
    assert len(titles) == len(miniature_lab_plots.CURVES) - 1
    assert miniature_lab_plots.CURVES["kl"][0] not in titles
