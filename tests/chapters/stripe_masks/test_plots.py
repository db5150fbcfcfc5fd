from __future__ import annotations

import numpy as np
import pytest

from tests.planted import frames
from threegates.chapters.stripe_masks import plots as stripe_masks_plots
from threegates.chapters.stripe_masks import views as stripe_masks_views
from threegates.estimates.paper import table_2
from threegates.figures.style import PAPER
from threegates.jobs.nulls import FOUNDING


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
    fig = stripe_masks_plots.consensus_maps(frame.reset_index(drop=True), head_size=32)
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
    for column in ("jaccard", *FOUNDING):
        assert {round(v, 9) for v in rows[column]} <= points


def test_the_paper_s_table_stands_beside_rl_runs_and_no_others():
    plain = frames.nulls()
    frame = stripe_masks_views.beside_the_paper(plain)
    fig = stripe_masks_plots.jaccard_against_nulls(frame)
    hollow = {
        ax.get_title(loc="left"): sorted(
            x for line in ax.lines if line.get_markeredgecolor() == PAPER["mec"] for x in line.get_xdata()
            if np.isfinite(x)
        )
        for ax in fig.axes
    }  # fmt: skip
    printed = table_2()
    assert hollow["RL runs"] == sorted([*printed["paper_jaccard"], *printed["paper_bernoulli"]])
    assert hollow["SFT runs"] == []
    legend = {text.get_text() for text in fig.legends[0].get_texts()}
    assert {"the paper, Table 2", "the paper's Bernoulli"} <= legend
    bare = stripe_masks_plots.jaccard_against_nulls(plain)
    assert "the paper, Table 2" not in {text.get_text() for text in bare.legends[0].get_texts()}
